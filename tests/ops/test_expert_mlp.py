import importlib
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pangu_jax.core.errors import InputError
from pangu_jax.ops import expert_loop, expert_sorted
from pangu_jax.ops.expert_mlp import choose, expert_mlp
from pangu_jax.ops.expert_sorted import sort_pairs

expert_mlp_module = importlib.import_module("pangu_jax.ops.expert_mlp")
G, SIZE, K, D, F = 2, 4, 2, 6, 5


FORMS = {
    name: partial(expert_mlp, impl=name)
    for name in ("reference", "gather", "dense", "ragged", "loop", "block")
}


def draw(tokens, case="random", *, sizes=(G, SIZE, K, D, F), dtype=np.float32):
    groups, size, k, width, hidden = sizes
    rng = np.random.default_rng(tokens)
    scores = rng.uniform(size=(tokens, groups, size))
    if case == "one expert":  # then the lowest ones for the rest of k
        scores = np.broadcast_to(np.arange(size, 0, -1), scores.shape)
    if case == "idle experts":
        scores[..., k:-1] = -1
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., :k].astype(np.int32)
    if case == "thin":  # one pair for each expert but the last: no layout needs more blocks
        thin = np.minimum(np.arange(tokens * k).reshape(tokens, 1, k), size - 1)
        ids = np.broadcast_to(thin, ids.shape).astype(np.int32)
    weights = rng.uniform(0.1, 1, ids.shape).astype(np.float32)
    gate, up = (rng.normal(size=(groups, size, width, hidden)) / 2 for _ in range(2))
    down = rng.normal(size=(groups, size, hidden, width)) / 2
    x = rng.normal(size=(tokens, width))
    return x.astype(dtype), ids, weights, gate.astype(dtype), up.astype(dtype), down.astype(dtype)


def naive(x, ids, weights, gate, up, down, dy):
    """Values and gradients pair by pair in float64 numpy, for the loss sum(y * dy)."""
    x, weights, gate, up, down = (np.float64(v) for v in (x, weights, gate, up, down))
    y, dx, dw = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weights)
    dg, du, dd = np.zeros_like(gate), np.zeros_like(up), np.zeros_like(down)
    for (t, g, j), e in np.ndenumerate(ids):
        a, b, w = x[t] @ gate[g, e], x[t] @ up[g, e], weights[t, g, j]
        s = 1 / (1 + np.exp(-a))
        h = a * s * b
        y[t] += w * (h @ down[g, e])
        dh = down[g, e] @ dy[t]
        dw[t, g, j] = h @ dh
        da, db = w * dh * b * (s + a * s * (1 - s)), w * dh * a * s
        dx[t] += gate[g, e] @ da + up[g, e] @ db
        dg[g, e] += np.outer(x[t], da)
        du[g, e] += np.outer(x[t], db)
        dd[g, e] += w * np.outer(h, dy[t])
    return y, dx, dw, dg, du, dd


def with_gradients(form, dy):
    def run(x, ids, *rest):
        y, back = jax.vjp(lambda x, *rest: form(x, ids, *rest), x, *rest)
        return y, *back(dy.astype(y.dtype))

    return run


def worst(got, want):
    """Largest relative error over values and gradients."""
    errors = [
        np.abs(np.float64(a) - b).max() / max(np.abs(b).max(), 1e-30)
        for a, b in zip(got, want, strict=True)
    ]
    return max(errors)


SLOW = (pytest.param(n, marks=pytest.mark.slow) for n in (2, 7, 9, 127, 128, 129))


@pytest.mark.long(but=2)
@pytest.mark.parametrize("tokens", [1, 8, 1000, *SLOW])
def test_values_and_all_gradients_equal_a_loop_over_pairs(tokens):
    dy = np.random.default_rng(0).normal(size=(tokens, D)).astype(np.float32)
    run = jax.jit(lambda *a: {n: with_gradients(f, dy)(*a) for n, f in FORMS.items()})
    for case in ("random", "one expert", "idle experts", "thin"):
        arrays = draw(tokens, case)
        want = naive(*arrays, dy)
        for name, got in run(*arrays).items():
            assert all(np.isfinite(a).all() for a in got), name
            assert worst(got, want) < 1e-5, (name, case)


@pytest.mark.long
def test_bfloat16_stays_bfloat16_and_close():
    arrays = draw(130, dtype=jnp.bfloat16)
    dy = np.random.default_rng(0).normal(size=(130, D)).astype(jnp.bfloat16)
    want = naive(*arrays, np.float64(dy))
    run = jax.jit(lambda *a: {n: with_gradients(f, dy)(*a) for n, f in FORMS.items()})
    for name, (y, dx, dweights, *kernels) in run(*arrays).items():
        assert y.dtype == dx.dtype == jnp.bfloat16 and dweights.dtype == jnp.float32
        assert all(k.dtype == jnp.bfloat16 for k in kernels)
        assert worst((y, dx, dweights, *kernels), want) < 0.03, name


@pytest.mark.parametrize("case", ["random", "one expert", "idle experts"])
def test_every_pair_is_processed_however_they_fall(case):
    tokens, groups, size, k = 80, 2, 8, 3
    experts = groups * size
    _, ids, weights, *_ = draw(tokens, case, sizes=(groups, size, k, experts, 1))
    x = np.zeros((tokens, experts), np.float32)
    x[:, 0] = 1
    gate, up = np.zeros((2, groups, size, experts, 1), np.float32)
    gate[:, :, 0] = 30  # silu(30) = 30
    up[:, :, 0] = 1 / 30
    marks = np.eye(experts, dtype=np.float32).reshape(groups, size, 1, experts)
    load = np.bincount((ids + size * np.arange(groups)[:, None]).reshape(-1), minlength=experts)
    run = jax.jit(lambda *a: {n: f(*a) for n, f in FORMS.items()})
    for name, y in run(x, ids, np.ones_like(weights), gate, up, marks).items():
        np.testing.assert_allclose(np.sum(y, 0), load, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(np.sum(y, 1), groups * k, rtol=1e-5, err_msg=name)
    assert load.sum() == tokens * groups * k


def inner(eqn):
    """(jaxpr, how often it runs) for each jaxpr in an equation."""
    times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    if eqn.primitive.name in ("while", "cond"):
        times = math.nan  # nobody knows
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item, times


def dot_flops(jaxpr):
    """FLOPs of all dot products, bodies of loops times their trips."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        # On CPU and GPU a ragged product is computed for all experts and masked.
        if eqn.primitive.name.startswith("ragged_dot"):
            rows, kernels = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
            total += 2 * math.prod(rows) * kernels[0] * kernels[2]
        total += sum(times * dot_flops(body) for body, times in inner(eqn))
    return total


def largest(jaxpr):
    """Elements of the largest array that any equation makes."""
    sizes = [math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars]
    deeper = [largest(body) for eqn in jaxpr.eqns for body, _ in inner(eqn)]
    return max([0, *sizes, *deeper])


def traced(form, sizes, tokens, *, gradients=False):
    arrays = draw(tokens, sizes=sizes)
    if gradients:
        form = with_gradients(form, arrays[0])
    return jax.make_jaxpr(form)(*arrays).jaxpr


# tokens, groups, experts per group, k: grouped, the same as one group, many experts, two a group
@pytest.mark.long(but=1)
@pytest.mark.parametrize(("groups", "size", "k"), [(8, 8, 1), (1, 64, 8), (1, 128, 8), (8, 16, 2)])
def test_blocks_cost_at_most_1_3_times_the_ideal(groups, size, k):
    tokens, width, hidden = 4096, 32, 32
    sizes = (groups, size, k, width, hidden)
    ideal = 6 * tokens * groups * k * width * hidden
    assert ideal <= dot_flops(traced(FORMS["block"], sizes, tokens)) <= 1.3 * ideal
    # Forward 3 products a pair; backward 2 recomputed and 6: 11 in all, 9 the least.
    both = dot_flops(traced(FORMS["block"], sizes, tokens, gradients=True))
    assert ideal * 11 / 3 <= both <= 1.3 * ideal * 11 / 3


COUNTED = []  # one for all cases: some versions of jax trace those of equal shapes only once


@pytest.mark.long(but=1)
@pytest.mark.parametrize(("groups", "size", "k"), [(8, 8, 1), (1, 64, 8)])
def test_a_loop_computes_at_most_1_3_times_the_ideal(groups, size, k, monkeypatch):
    """Counted while it runs, as its steps are what the loads say."""
    tokens, width, hidden = 4096, 4, 2
    found, dot = COUNTED, expert_loop._dot

    def counted(subscripts, left, right):
        y = dot(subscripts, left, right)
        flops = 2 * left.shape[0] * width * hidden  # rows are the first axis, summed over or not
        jax.debug.callback(lambda _: found.append(flops), y[0, 0])
        return y

    monkeypatch.setattr(expert_loop, "_dot", counted)
    ideal = 6 * tokens * groups * k * width * hidden
    run = jax.jit(with_gradients(FORMS["loop"], np.ones((tokens, width), np.float32)))
    for case in ("random", "one expert", "idle experts"):
        found.clear()
        jax.block_until_ready(run(*draw(tokens, case, sizes=(groups, size, k, width, hidden))))
        jax.effects_barrier()
        assert 3 * ideal <= sum(found) <= 1.3 * 3 * ideal, case


def test_blocks_of_a_loop_are_equal_and_hold_an_experts_rows():
    for rows, experts in ((1, 64), (8, 1), (1000, 8), (8192, 64), (10**6, 64)):
        sizes = expert_loop.block_sizes(rows, experts)
        for count in {0, 1, 7, 8, 9, rows // experts, rows // 2, rows}:
            blocks, size = (int(v) for v in expert_loop.split(np.int32(count), sizes))
            assert blocks * size >= count and (count == 0) == (blocks == 0)
            assert count == 0 or size in sizes
            assert blocks * size < count + max(blocks, 1) * sizes[0]
    assert expert_loop.block_sizes(8192, 64) == (32, 64, 96, 128, 160)


def test_dense_costs_all_experts_and_so_does_ragged_here():
    sizes, tokens = (1, 8, 1, 64, 64), 512
    ideal = 6 * tokens * 64 * 64
    dense = dot_flops(traced(FORMS["dense"], sizes, tokens))
    assert dense == pytest.approx(8 * ideal, rel=0.01)  # and a little for the weights
    assert dot_flops(traced(FORMS["ragged"], sizes, tokens)) == 8 * ideal
    # The compiler agrees; there is no loop in it, whose body it would count once.
    costs = jax.jit(FORMS["ragged"]).lower(*draw(tokens, sizes=sizes)).compile().cost_analysis()
    assert 7.5 < costs["flops"] / ideal < 9


@pytest.mark.parametrize("name", ["block", "loop", "ragged"])
def test_no_array_of_every_token_and_every_expert(name):
    sizes, tokens = (4, 4, 1, 24, 20), 256
    every = tokens * 16 * 20
    assert largest(traced(FORMS[name], sizes, tokens, gradients=True)) < every
    assert largest(traced(FORMS["dense"], sizes, tokens, gradients=True)) >= every


def test_a_loop_makes_no_array_of_all_pairs_as_wide_as_the_model():
    sizes, tokens = (4, 4, 1, 64, 8), 256
    pairs = tokens * 4
    assert largest(traced(FORMS["loop"], sizes, tokens, gradients=True)) < pairs * 64 / 3
    assert largest(traced(FORMS["ragged"], sizes, tokens)) >= pairs * 64


def test_a_loop_over_several_seeds_is_each_seed_s_own():
    """Loops of unknown steps would be one over all seeds; kernels and ids differ, x does not."""
    x, *one = draw(24)
    _, *other = draw(25)
    both = [
        np.stack([a, b[:24] if b.shape[0] == 25 else b]) for a, b in zip(one, other, strict=True)
    ]
    run = with_gradients(FORMS["loop"], x)
    got = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0, 0, 0)))(x, *both)
    for seed in range(2):
        arrays = [a[seed] for a in both]
        assert worst([v[seed] for v in got], naive(x, *arrays, np.float64(x))) < 1e-5


@pytest.mark.parametrize("name", ["gather", "dense", "block"])
def test_devices_that_hold_groups_exchange_tokens_never_kernels(name):
    sizes, tokens = (4, 4, 1, 16, 32), 13  # no multiple of the devices
    arrays = draw(tokens, sizes=sizes)
    dy = arrays[0]
    mesh = jax.make_mesh((4,), ("expert",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("expert",)))
    run = jax.jit(
        with_gradients(FORMS[name], dy),
        in_shardings=(whole,) * 3 + (split,) * 3,
        out_shardings=(whole,) * 3 + (split,) * 3,
    ).lower(*arrays)
    compiled = run.compile()
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", compiled.as_text())
    assert found
    for shape in re.findall(r"\[([\d,]*)\]", " ".join(found)):
        assert math.prod(int(n) for n in shape.split(",") if n) <= tokens * 16, shape
    placed = [
        jax.device_put(a, s) for a, s in zip(arrays, (whole,) * 3 + (split,) * 3, strict=True)
    ]
    assert worst(compiled(*placed), naive(*arrays, np.float64(dy))) < 1e-5


def test_kernels_trace_under_vmap_as_several_seeds_need_it():
    x, ids, weights, *kernels = draw(24, sizes=(2, 4, 1, 64, 64), dtype=jnp.bfloat16)
    many = [jnp.stack([jnp.asarray(a)] * 2) for a in (x, ids, weights, *kernels)]
    form = jax.vmap(partial(expert_mlp, impl="grouped"))
    assert jax.eval_shape(form, *many).shape == (2, 24, 64)


@pytest.mark.parametrize("align", [1, 4, 64])
@pytest.mark.parametrize(("tokens", "case"), [(1, "random"), (13, "one expert"), (40, "random")])
def test_every_expert_s_rows_begin_at_a_multiple(tokens, case, align):
    _, ids, weights, *_ = draw(tokens, case)
    order = jax.jit(sort_pairs, static_argnums=(2, 3))(ids, weights, SIZE, align)
    counts = np.bincount((ids + np.arange(G)[:, None] * SIZE).ravel(), minlength=G * SIZE)
    filled = -(-counts // align) * align
    assert (order.counts == filled).all() and filled.sum() <= len(order.token)
    begins = np.cumsum(filled) - filled
    used = np.zeros(len(order.token), bool)
    for (t, g, k), e in np.ndenumerate(ids):
        row, expert = int(order.place[t, g * K + k]), g * SIZE + e
        assert begins[expert] <= row < begins[expert] + counts[expert] and not used[row]
        assert order.token[row] == t and order.weight[row] == weights[t, g, k]
        used[row] = True
    assert (np.asarray(order.weight)[~used] == 0).all()
    assert (np.asarray(order.token)[~used] == tokens).all()


@pytest.mark.parametrize("name", ["ragged", "loop"])
def test_rows_that_fill_up_change_nothing_whatever_tokens_hold(name):
    """As the kernels have them; no token of other experts is in them."""
    x, ids, weights, gate, up, down = draw(13)
    first_and_last = [0, -1]  # would overflow in another expert
    ids[:], ids[first_and_last] = [1, 3], [0, 2]
    x[first_and_last] = 1e15
    gate[:, 1::2] *= 1e25
    dy = np.zeros_like(x)
    dy[1:-1] = draw(14)[0][1:12]
    order = sort_pairs(ids, weights, SIZE, 8)
    flat = [k.reshape(-1, *k.shape[2:]) for k in (gate, up, down)]

    def form(x, weights, *kernels):
        if name == "loop":
            return FORMS["loop"](
                x, ids, weights, *(k.reshape(G, SIZE, *k.shape[1:]) for k in kernels)
            )
        return expert_sorted._sorted("ragged_dot", 8, x, weights, order, *kernels)

    run = jax.jit(lambda *a: jax.vjp(form, *a))
    _, back = run(x, weights, *flat)
    with np.errstate(over="ignore"):
        want = naive(x, ids, weights, gate, up, down, np.float64(dy))[1:]
    for a, b in zip(back(dy), want, strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), rtol=1e-4, atol=1e-5 * np.abs(b).max())
    if name == "loop":  # whose blocks reach into other experts' rows
        x[first_and_last] = 1e25  # overflows in the tokens' own experts: theirs alone
        _, _, *kernels = run(x, weights, *flat)[1](dy)
        assert all(np.isfinite(k[1::2]).all() for k in kernels)


def test_kernels_of_another_type_and_no_tokens_take_no_grouped_products(monkeypatch):
    asked = []

    def spy(*given):
        asked.append(given[-1])
        return "reference"

    monkeypatch.setattr(expert_mlp_module, "choose", spy)
    for tokens, kernels_type in ((3, jnp.bfloat16), (3, np.float32), (0, jnp.bfloat16)):
        x, ids, weights, *_ = draw(tokens, sizes=(2, 4, 1, 16, 32), dtype=jnp.bfloat16)
        kernels = draw(3, sizes=(2, 4, 1, 16, 32), dtype=kernels_type)[3:]
        jax.eval_shape(expert_mlp, x, ids, weights, *kernels)
    assert asked == [True, False, False]


def test_the_rule_reads_platform_and_shape():
    assert choose("gpu", 1, 1, 8) == choose("gpu", 7, 1, 8) == "gather"
    assert choose("gpu", 8, 1, 8) == choose("gpu", 256, 1, 8) == "dense"
    assert choose("gpu", 257, 1, 8) == "block" and choose("tpu", 257, 1, 8) == "ragged"
    assert choose("hopper", 1, 1, 8) == choose("hopper", 257, 1, 8) == "grouped"
    assert choose("hopper", 1, 1, 8, fits=False) == "gather"
    assert choose("hopper", 257, 1, 8, fits=False) == "block"
    assert choose("cpu", 1, 8, 64) == "gather" and choose("cpu", 64, 1, 8) == "loop"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"impl": "fast"}, "impl of expert_mlp must be one of"),
        ({"weights": np.ones((3, G, 1), np.float32)}, "weights is"),
        ({"down": np.ones((G, SIZE, D, F), np.float32)}, "down is"),
        ({"ids": np.ones((3, G + 1, K), np.int32)}, "ids is"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, words):
    names = ("x", "ids", "weights", "gate", "up", "down")
    arguments = {**dict(zip(names, draw(3), strict=True)), **change}
    with pytest.raises(InputError, match=words):
        expert_mlp(**arguments)


@pytest.mark.parametrize("name", list(FORMS))
def test_no_tokens_give_no_rows(name):
    assert jax.eval_shape(FORMS[name], *draw(0)).shape == (0, D)
