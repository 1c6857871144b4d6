"""Generation: cache against full forward, ragged batches, keys, stops, compilations."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec, ones
from pangu_jax.decode.generate import generate, stream
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.sharding.layout import Layout, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

HEADS = AttentionConfig(2, 2, 4, qk_norm=True, query_bias=True)
CFG = decoder.DecoderConfig(
    23,
    16,
    (
        LayerConfig(dataclasses.replace(HEADS, window=3, softcap=2.0), mlp=MlpConfig(24)),
        LayerConfig(HEADS, moe=MoEConfig(4, 2, 1, 8, shared_width=8)),
    ),
)
DENSE = decoder.DecoderConfig(
    23, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),), tied=True
)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8]]
HOT = SamplingConfig(1.0, top_k=12, top_p=0.95)


@functools.cache
def model(cfg=CFG):
    """Random weights, large enough that the text is not one token over and over."""
    rng = np.random.default_rng(0)

    def leaf(spec):
        gain = spec.init == ones
        scale = 0.2 if gain else 0.5
        return jnp.asarray(gain + scale * rng.normal(size=spec.shape), jnp.float32)

    return jax.tree.map(leaf, decoder.spec(cfg), is_leaf=is_spec)


@functools.cache
def full_forward():
    return jax.jit(lambda p, t: decoder.logits(p, decoder.apply(p, t, cfg=CFG).hidden, cfg=CFG))


def continued(prompt, count, stop=()):
    """Greedy text by a full forward pass for every token, one row alone, no cache."""
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 32), np.int32)  # later tokens are not seen by earlier ones
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(full_forward()(model(), padded)[0, len(ids) - 1])))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


def test_prefill_and_steps_equal_the_full_forward_at_every_position():
    """moge.md 6, test 20: rows of different lengths, each as if alone."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, CFG.vocab, n).tolist() for n in (10, 3, 7)]
    first = np.array([4, 1, 3])  # tokens that are read at once
    given = rng.integers(0, CFG.vocab, (3, 4))  # what is behind a row's end is anything
    for row, ids in enumerate(rows):
        given[row, : first[row]] = ids[: first[row]]
    params = transformer.by_layer(model())
    prefill = jax.jit(functools.partial(decoder.prefill, cfg=CFG))
    scores, caches = prefill(params, jnp.asarray(given), jnp.asarray(first))
    caches = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 12), (0, 0), (0, 0))), caches)
    step = jax.jit(functools.partial(decoder.step, cfg=CFG))
    found = [scores]
    for i in range(9):
        token = jnp.array([([*ids, *[0] * 16])[n + i] for ids, n in zip(rows, first, strict=True)])
        scores, caches = step(params, token, jnp.asarray(first + i, jnp.int32), caches)
        found.append(scores)
    found = np.stack(found, 1)
    for row, (ids, n) in enumerate(zip(rows, first, strict=True)):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        want = full_forward()(model(), padded)[0, n - 1 : len(ids)]
        assert want.std() > 0.3
        np.testing.assert_allclose(found[row, : len(want)], want, atol=1e-4)


def test_greedy_text_is_that_of_a_full_forward_for_every_token():
    out = generate(model(), PROMPTS, cfg=CFG, max_new_tokens=12)
    want = [continued(prompt, 12) for prompt in PROMPTS]
    assert len({tuple(row) for row in want}) == 3
    assert max(len(set(row)) for row in want) > 2
    assert out.rows() == want
    assert out.ids.shape == (3, 12)
    assert out.ids.dtype == np.int32
    assert out.lengths.tolist() == [12, 12, 12]


@pytest.mark.long
def test_a_row_has_the_text_it_would_have_alone():
    """moge.md 6, test 20: batch invariance, with what is drawn as well; keys change the draws."""
    options = {"cfg": CFG, "max_new_tokens": 12, "sampling": HOT}
    rows = generate(model(), PROMPTS, **options, key=jax.random.key(7)).rows()
    again = generate(model(), PROMPTS, **options, key=jax.random.key(7)).rows()
    assert again == rows
    beside = [PROMPTS[0], [1, 2, 3], [9] * 12]
    assert generate(model(), beside, **options, key=jax.random.key(7)).rows()[0] == rows[0]
    assert generate(model(), PROMPTS[:1], **options, key=jax.random.key(7)).rows() == rows[:1]
    same = generate(model(), [PROMPTS[0]] * 3, **options, key=jax.random.key(7)).rows()
    assert same[0] == rows[0] != same[1]
    assert generate(model(), PROMPTS, **options, key=jax.random.key(8)).rows() != rows
    plain = generate(model(), PROMPTS, **options).rows()
    assert plain == generate(model(), PROMPTS, **options, key=jax.random.key(0)).rows()


@pytest.mark.parametrize("sampling", [SamplingConfig(), HOT])
def test_a_stream_gives_the_same_tokens(sampling):
    options = {"cfg": DENSE, "max_new_tokens": 9, "sampling": sampling, "key": jax.random.key(7)}
    want = generate(model(DENSE), PROMPTS[:1], **options).rows()[0]
    assert len(set(want)) > 2
    assert list(stream(model(DENSE), PROMPTS[0], **options)) == want
    stop = [22, want[4]]
    ends = want[: want.index(want[4]) + 1]
    assert list(stream(model(DENSE), PROMPTS[0], **options, stop_ids=stop)) == ends


def test_a_row_ends_with_its_stop_token_and_the_rest_goes_on():
    plain = [continued(prompt, 12) for prompt in PROMPTS]
    stop = (plain[0][2], plain[1][5])
    want = [continued(prompt, 12, stop) for prompt in PROMPTS]
    assert len({len(row) for row in want}) > 1
    out = generate(model(), PROMPTS, cfg=CFG, max_new_tokens=12, stop_ids=stop)
    assert out.rows() == want
    for row, length in zip(out.ids, out.lengths, strict=True):
        assert (row[length:] == 0).all()


@pytest.mark.long
def test_the_loop_ends_when_every_row_has_stopped():
    """Not after max_new_tokens steps: these would take minutes."""
    options = {"cfg": DENSE, "stop_ids": range(0, 23, 2), "sampling": HOT}
    short = generate(model(DENSE), PROMPTS, **options, max_new_tokens=16)
    assert (short.lengths < 16).all()
    start = time.perf_counter()
    out = generate(model(DENSE), PROMPTS, **options, max_new_tokens=100_000)
    assert time.perf_counter() - start < 30
    assert out.rows() == short.rows()


@pytest.mark.long
def test_similar_calls_share_a_compilation(at_most):
    """moge.md 6, test 23: a program to read prompts of a size, one for the loop."""
    options = {"cfg": DENSE, "sampling": HOT}

    def lengths(longest, max_new_tokens, seed):
        prompts, key = [[1 + seed] * longest, [2]], jax.random.key(seed)
        options["stop_ids"] = range(seed)
        return generate(
            model(DENSE), prompts, **options, max_new_tokens=max_new_tokens, key=key
        ).ids.shape

    at_most(1, decoder, "prefill")
    at_most(1, decoder, "step")
    assert lengths(3, 17, 0) == (2, 17)
    at_most(0, decoder, "prefill")
    at_most(0, decoder, "step")
    assert [lengths(9, 32, 1), lengths(16, 20, 2)] == [(2, 32), (2, 20)]
    with pytest.raises(AssertionError, match="traced > 0 times"):
        lengths(17, 20, 0)  # a longer prompt: one more size
    at_most(1, decoder, "prefill")
    at_most(1, decoder, "step")
    for length in (1, 16):
        assert len(list(stream(model(DENSE), [1] * length, **options, max_new_tokens=10))) == 10


@pytest.mark.long
def test_parameters_split_over_devices_give_the_same_text():
    layout = Layout(make_mesh(data=2, tensor=2, expert=2), preset("tensor+expert"))
    where = shardings(decoder.spec(CFG), layout)
    params = jax.device_put(model(), where)
    prompts = [*PROMPTS, [2, 2]]
    want = generate(model(), prompts, cfg=CFG, max_new_tokens=8).rows()
    assert generate(params, prompts, cfg=CFG, max_new_tokens=8, how=How(layout)).rows() == want


def test_bfloat16_is_the_type_of_activations_and_cache(monkeypatch):
    kinds, forward = set(), transformer.unrolled

    def seen(*arguments, **options):
        x, places = forward(*arguments, **options)
        kinds.update({x.dtype, *(place.key.dtype for place in places)})
        return x, places

    monkeypatch.setattr(transformer, "unrolled", seen)
    generate(model(DENSE), [[1, 2]], cfg=DENSE, max_new_tokens=3, how=How(dtype=jnp.bfloat16))
    assert kinds == {jnp.dtype(jnp.bfloat16)}


def test_prompts_may_be_an_array_and_bad_ones_are_refused():
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    options = {"cfg": DENSE, "max_new_tokens": 3}
    assert generate(model(DENSE), prompts, **options).rows() == (
        generate(model(DENSE), prompts.tolist(), **options).rows()
    )
    for wrong, message in (
        ([], "no prompt"),
        ([[1], []], "prompt 1"),
        ([[23]], "23"),
        ([[-1]], "-1"),
    ):
        with pytest.raises(InputError, match=message):
            generate(model(DENSE), wrong, **options)
    with pytest.raises(InputError, match="max_new_tokens"):
        generate(model(DENSE), [[1]], cfg=DENSE, max_new_tokens=0)
    with pytest.raises(InputError, match="max_new_tokens"):
        list(stream(model(DENSE), [1], cfg=DENSE, max_new_tokens=0))
