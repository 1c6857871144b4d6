"""The optimizer step against AdamW written out, and the same whatever the batch is cut into."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint.store import Store, template
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import targeting
from pangu_jax.core.spec import Normal, Spec, abstract
from pangu_jax.core.tree import flatten
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset
from pangu_jax.train import resume
from pangu_jax.train import step as steps
from pangu_jax.train.optimizer import decay_mask, make_optimizer, schedule
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.step import abstract_state, init_state, make_step

SPEC = {
    "dense": {"kernel": Spec((4, 3), ("embed", "mlp"), Normal(0.5))},
    "norm": {"scale": Spec((4,), ("embed",), Normal(0.5))},
}
CONFIG = OptimizerConfig(learning_rate=0.05, clip_norm=0.5, weight_decay=0.2)
STEPS = 6


def loss(params, frozen, batch, key):
    """Weighted squared error; rows of weight 0 are padding."""
    del frozen, key
    error = (batch["x"] * params["norm"]["scale"]) @ params["dense"]["kernel"] - batch["y"]
    total = (batch["w"] * (error**2).sum(-1)).sum()
    return total, batch["w"].sum(), {"error": total}


def batch(seed, rows=8):
    rng = np.random.default_rng(seed)
    # Together less than 1, as they may be: the divisor is their sum all the same.
    weights = rng.integers(0, 2, rows).astype(np.float32) / 16
    weights[0] = 1 / 16
    return {
        "x": rng.normal(size=(rows, 4)).astype(np.float32),
        "y": rng.normal(size=(rows, 3)).astype(np.float32),
        "w": weights,
    }


def start():
    return init_state(SPEC, make_optimizer(CONFIG, STEPS), key=jax.random.key(0))


def run(accumulate=1, state=None):
    step = make_step(
        loss,
        make_optimizer(CONFIG, STEPS),
        accumulate=accumulate,
        schedule=schedule(CONFIG, STEPS),
    )
    state = start() if state is None else state
    seen = []
    for number in range(STEPS):
        state, metrics = step(state, batch(number), jax.random.key(1))
        seen.append({name: float(x) for name, x in metrics.items()})
    return state, seen


def by_hand():
    """AdamW with clipping, decoupled decay on the kernel alone, and the cosine, in float64."""
    params = {n: np.asarray(x, np.float64) for n, x in flatten(start().params).items()}
    first = {n: np.zeros_like(x) for n, x in params.items()}
    second = {n: np.zeros_like(x) for n, x in params.items()}
    losses = []
    for number in range(STEPS):
        data = {n: x.astype(np.float64) for n, x in batch(number).items()}
        kernel, scale = params["dense/kernel"], params["norm/scale"]
        hidden = data["x"] * scale
        error = hidden @ kernel - data["y"]
        total = data["w"].sum()
        losses.append((data["w"] * (error**2).sum(-1)).sum() / total)
        derror = 2 * data["w"][:, None] * error / total
        grads = {
            "dense/kernel": hidden.T @ derror,
            "norm/scale": (derror @ kernel.T * data["x"]).sum(0),
        }
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        warmup = round(CONFIG.warmup_fraction * STEPS)
        progress = (number - warmup) / (STEPS - warmup)
        low = CONFIG.end_fraction
        rate = CONFIG.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
        for name, grad in grads.items():
            grad = grad * min(1, CONFIG.clip_norm / norm)
            first[name] = CONFIG.b1 * first[name] + (1 - CONFIG.b1) * grad
            second[name] = CONFIG.b2 * second[name] + (1 - CONFIG.b2) * grad**2
            update = (first[name] / (1 - CONFIG.b1 ** (number + 1))) / (
                np.sqrt(second[name] / (1 - CONFIG.b2 ** (number + 1))) + CONFIG.eps
            )
            if name == "dense/kernel":
                update = update + CONFIG.weight_decay * params[name]
            params[name] = params[name] - rate * update
    return params, losses


def test_six_steps_equal_adamw_written_out():
    state, seen = run()
    params, losses = by_hand()
    chex.assert_trees_all_close(flatten(state.params), params, rtol=1e-7, atol=2e-6)
    np.testing.assert_allclose([m["loss"] for m in seen], losses, rtol=1e-5)
    np.testing.assert_allclose([m["error"] for m in seen], losses, rtol=1e-5)
    rates = [float(schedule(CONFIG, STEPS)(number)) for number in range(STEPS)]
    assert [m["learning_rate"] for m in seen] == pytest.approx(rates)
    assert int(state.step) == STEPS


@pytest.mark.parametrize("accumulate", [2, 4])
def test_microbatches_weigh_every_token_the_same(accumulate):
    state, seen = run(accumulate)
    want, expected = run()
    chex.assert_trees_all_close(state, want, rtol=1e-7, atol=1e-6)
    assert [m["weight"] for m in seen] == [m["weight"] for m in expected]
    with pytest.raises(InputError, match="accumulate 3 must divide the batch of 8"):
        run(3)


@pytest.mark.parametrize(("accumulate", "traces"), [(1, 1), (2, 2)])
def test_all_steps_share_a_compilation(accumulate, traces):
    """Microbatches are looked at twice: for the shapes of their sums, and to be run."""
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(loss, traces)
    step = make_step(counted, make_optimizer(CONFIG, STEPS), accumulate=accumulate)
    state = start()
    for number in range(3):
        state, _ = step(state, batch(number), jax.random.key(number))


def test_a_state_lies_where_its_parameters_do():
    params = init_state(SPEC, make_optimizer(CONFIG, STEPS), key=jax.random.key(0)).params
    params = jax.device_put(params, jax.devices()[2])
    optimizer = make_optimizer(CONFIG, STEPS)
    state = init_state(SPEC, optimizer, key=jax.random.key(0), params=params)
    state, _ = make_step(loss, optimizer)(state, batch(0), jax.random.key(0))
    assert {x.device for x in jax.tree.leaves((state.params, state.opt_state))} == {
        jax.devices()[2]
    }


def test_a_restored_state_takes_the_step_that_was_compiled(tmp_path):
    optimizer = make_optimizer(CONFIG, STEPS)
    step = make_step(loss, optimizer)
    state, _ = step(start(), batch(0), jax.random.key(0))
    with Store(tmp_path) as store:
        resume.save(store, 1, state, {})
        store.wait()
        params = template(abstract(SPEC), SPEC, None)
        rest = resume.on_device(resume.beside_parameters(abstract_state(SPEC, optimizer)), None)
        params, rest = store.restore(1, params, rest)
    step(state.replace(params=params, **rest), batch(1), jax.random.key(1))
    assert step._cache_size() == 1


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_norm_is_that_of_all_gradients_wherever_it_is_computed(platform, monkeypatch):
    """Some leaves are larger than what is joined, some are not; or all are, or there is one."""
    grads = {
        "a": np.arange(12.0).reshape(3, 4),
        "b": np.ones(2),
        "c": np.float64(3),
        "d": -np.ones(5),
    }
    for small in (0, 4, 100):
        monkeypatch.setattr(steps, "SMALL", small)
        with targeting(platform):
            for tree in (grads, {"c": grads["c"]}):
                want = np.sqrt(sum((x**2).sum() for x in tree.values()))
                found = steps._norm(jax.tree.map(jnp.asarray, tree), None)
                np.testing.assert_allclose(found, want, rtol=1e-6)


def test_what_is_not_trained_stays_and_has_no_moments():
    optimizer = make_optimizer(CONFIG, STEPS)
    kernel = {"key": jax.random.key(0), "trainable": "dense/.*"}
    state = init_state(SPEC, optimizer, **kernel)
    before = jax.device_get(state.params)
    assert not [x for x in jax.tree.leaves(state.opt_state) if x.shape == (4,)]
    template = abstract_state(SPEC, optimizer, trainable="dense/.*")
    chex.assert_trees_all_equal_shapes_and_dtypes(state, template)
    step = make_step(loss, optimizer, trainable="dense/.*")
    data = batch(0)

    def of_kernel(kernel):
        total, weight, _ = loss({**before, "dense": {"kernel": kernel}}, None, data, None)
        return total / weight

    norm = np.linalg.norm(jax.grad(of_kernel)(before["dense"]["kernel"]))
    for number in range(3):
        state, metrics = step(state, batch(number), jax.random.key(1))
        if not number:
            assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    chex.assert_trees_all_equal(state.params["norm"], before["norm"])
    assert (state.params["dense"]["kernel"] != before["dense"]["kernel"]).all()
    for wrong, words in (("kernel", "matches no parameter's whole path"), ("(", "no regular")):
        with pytest.raises(InputError, match=words):
            init_state(SPEC, optimizer, key=jax.random.key(0), trainable=wrong)


def test_seeds_at_once_are_those_alone():
    optimizer, keys = make_optimizer(CONFIG, STEPS), jax.random.split(jax.random.key(3), 2)
    step = make_step(loss, optimizer, seeds=2)
    state, alone = init_state(SPEC, optimizer, key=keys), []
    template = abstract_state(SPEC, optimizer, seeds=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, template)
    for i in range(2):
        one = init_state(SPEC, optimizer, key=keys[i])
        for number in range(3):
            one, metrics = make_step(loss, optimizer)(one, batch(10 * i + number), keys[i])
        alone.append((one.params, metrics))
    for number in range(3):
        both = jax.tree.map(lambda *x: np.stack(x), batch(number), batch(10 + number))
        state, metrics = step(state, both, keys)
    assert int(state.step) == 3
    stacked = jax.tree.map(lambda *x: np.stack(x), *alone)
    chex.assert_trees_all_close((state.params, metrics), stacked, rtol=1e-5, atol=1e-6)


def test_several_steps_in_a_call_are_single_ones():
    key, optimizer = jax.random.key(1), make_optimizer(CONFIG, STEPS)
    rows = [batch(number) for number in (0, 1, 2)]
    several = make_step(loss, optimizer, chunk=3, schedule=lambda step: 0.5 * step)
    state, found = several(start(), jax.tree.map(lambda *x: np.stack(x), *rows), key)
    one, seen = start(), []
    for data in rows:
        one, metrics = make_step(loss, optimizer, schedule=lambda step: 0.5 * step)(one, data, key)
        seen.append(metrics)
    chex.assert_trees_all_close(state, one, rtol=1e-6, atol=1e-7)
    stacked = jax.tree.map(lambda *x: np.stack(x), *seen)
    chex.assert_trees_all_close(found, stacked, rtol=1e-5, atol=1e-6)
    assert stacked["learning_rate"].tolist() == [0.0, 0.5, 1.0]


def test_every_microbatch_of_every_step_has_its_own_key():
    def drawn(params, frozen, batch, key):
        draw = jax.random.uniform(key)
        metrics = {str(i): batch["place"][0, i] * draw for i in range(4)}
        return params["norm"]["scale"].sum(), jnp.float32(0.25), metrics

    step = make_step(drawn, make_optimizer(CONFIG, STEPS), accumulate=4)
    state, draws = start(), []
    for _ in range(3):
        state, metrics = step(state, {"place": np.eye(4, dtype=np.float32)}, jax.random.key(1))
        draws += [float(metrics[str(i)]) for i in range(4)]
    assert all(draws) and len(set(draws)) == 12


def test_split_over_devices_gives_the_same_parameters_and_moments():
    where = Layout(make_mesh(fsdp=4, data=2), preset("fsdp"))
    optimizer = make_optimizer(CONFIG, STEPS)
    state = init_state(SPEC, optimizer, key=jax.random.key(0), layout=where)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (4, 3)]
    assert len(moments) == 2
    for leaf in (state.params["dense"]["kernel"], *moments):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(1, 3)}
    template = abstract_state(SPEC, optimizer, layout=where)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, template)
    got, _ = run(state=state)
    want, _ = run()
    chex.assert_trees_all_close(got, want, rtol=1e-7, atol=1e-6)


def test_decay_pulls_at_kernels_and_tables_alone():
    mask = flatten(
        decay_mask(
            {
                "embed": {"table": 0},
                "a": {"kernel": 0, "bias": 0},
                "router": {"kernel": 0, "scale": 0},
                "norm": {"scale": 0},
            }
        )
    )
    assert {name for name, pulled in mask.items() if pulled} == {
        "embed/table",
        "a/kernel",
        "router/kernel",
    }


def test_schedules_rise_hold_and_fall_as_said():
    base = {"learning_rate": 2.0, "warmup_fraction": 0.1, "end_fraction": 0.25}
    cosine = schedule(OptimizerConfig(**base), 100)
    assert float(cosine(0)) == 0 and float(cosine(5)) == pytest.approx(1)
    assert float(cosine(10)) == pytest.approx(2) and float(cosine(100)) == pytest.approx(0.5)
    assert float(cosine(55)) == pytest.approx((2 + 0.5) / 2)
    wsd = schedule(OptimizerConfig(**base, schedule="wsd", decay_fraction=0.2), 100)
    assert [float(wsd(s)) for s in (10, 40, 80)] == pytest.approx([2, 2, 2])
    assert float(wsd(90)) == pytest.approx(1.25) and float(wsd(100)) == pytest.approx(0.5)
    constant = schedule(OptimizerConfig(**base, schedule="constant"), 100)
    assert [float(constant(s)) for s in (5, 10, 99)] == pytest.approx([1, 2, 2])
    few = schedule(OptimizerConfig(**base, schedule="constant"), 17)  # 1.7 steps are two
    assert float(few(1)) == pytest.approx(1)
    # A fall as long as the run begins when the rise is over.
    whole = schedule(OptimizerConfig(**base, schedule="wsd", decay_fraction=1.0), 100)
    assert [float(whole(s)) for s in (5, 10, 60)] == pytest.approx([1, 2, 1.25])


@pytest.mark.parametrize("name", ["warmup_fraction", "b1", "learning_rate", "clip_norm"])
def test_impossible_settings_are_refused_by_name(name):
    with pytest.raises(InputError, match=name):
        OptimizerConfig(**{name: -0.5})
