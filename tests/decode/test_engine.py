"""The engine: requests get what they get alone, scores are the model's, nothing is retraced."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec, ones
from pangu_jax.decode import engine as engines
from pangu_jax.decode import slots
from pangu_jax.decode.engine import Engine, Request, answers, join
from pangu_jax.decode.sample import adjusted_logits
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = AttentionConfig(2, 1, 4)
CFG = decoder.DecoderConfig(
    23,
    16,
    (
        LayerConfig(dataclasses.replace(HEADS, window=3), mlp=MlpConfig(24)),
        LayerConfig(HEADS, moe=MoEConfig(4, 2, 1, 8)),
    ),
)
SIZES = {"slots": 3, "length": 40, "stops": 2, "burst": 4}
WAYS = [
    SamplingConfig(),
    SamplingConfig(1.0),
    SamplingConfig(0.7, top_k=4),
    SamplingConfig(1.3, top_p=0.8),
    SamplingConfig(2.0, top_k=9, top_p=0.9),
]


@functools.cache
def model(seed=0):
    rng = np.random.default_rng(seed)

    def leaf(spec):
        gain = spec.init == ones
        return jnp.asarray(gain + (0.2 if gain else 0.5) * rng.normal(size=spec.shape), "f4")

    return jax.tree.map(leaf, decoder.spec(CFG), is_leaf=is_spec)


def engine(**changes):
    return Engine(model(), cfg=CFG, **{**SIZES, **changes})


def request(seed, length, max_new_tokens, way, stops=()):
    ids = np.random.default_rng(seed).integers(0, CFG.vocab, length).tolist()
    return Request(ids, max_new_tokens, WAYS[way], stops, jax.random.key(seed))


@functools.cache
def alone(*what):
    [(_, answer)] = answers(engine(), [request(*what)])
    return answer


REQUEST = st.tuples(
    st.integers(0, 9),
    st.integers(1, 20),
    st.sampled_from([1, 2, 3, 9, 20]),
    st.integers(0, len(WAYS) - 1),
    st.sampled_from([(), (5, 11), (3,)]),
)
LIFE = st.tuples(REQUEST, st.integers(0, 4), st.one_of(st.none(), st.integers(0, 5)))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(LIFE, min_size=1, max_size=9), *[st.booleans()] * 3)
def test_a_request_gets_what_it_gets_alone(lives, wake, whole, ahead):
    """Random arrivals, lengths, sampling, stops, refills and cancels on three slots."""
    here, deltas, numbers, cancelled, turn = engine(), {}, {}, set(), 0
    while here.busy or turn < 7:
        for index, (what, arrives, leaves) in enumerate(lives):
            if arrives == turn:
                numbers[here.submit(request(*what))] = index
            if leaves is not None and arrives + leaves == turn:
                found = next(n for n, i in numbers.items() if i == index)
                ended = any(p.finish_reason for p in deltas.get(found, []))
                assert here.cancel(found) is not ended
                cancelled |= set() if ended else {found}
        for delta in here.advance(wake=wake, whole=whole, ahead=ahead):
            assert delta.request not in cancelled
            assert delta.finish_reason or not whole
            assert delta.ids.size
            assert not any(p.finish_reason for p in deltas.get(delta.request, []))
            deltas.setdefault(delta.request, []).append(delta)
        turn += 1
    for number, index in numbers.items():
        want, got = alone(*lives[index][0]), deltas.get(number, [])
        if number not in cancelled:
            assert join(got).finish_reason == want.finish_reason
        size = sum(len(p.ids) for p in got)
        assert size == len(want.ids) or number in cancelled
        for name in ("ids", "log_probs", "sampled_log_probs", "versions"):
            found = np.concatenate([getattr(p, name) for p in got]) if got else np.zeros(0)
            np.testing.assert_array_equal(found, getattr(want, name)[:size], err_msg=name)
    assert here.free == SIZES["slots"]


@functools.partial(jax.jit, static_argnames="cfg")
def full_forward(params, tokens, *, cfg):
    return decoder.logits(params, decoder.apply(params, tokens, cfg=cfg).hidden, cfg=cfg)


def scores(params, cfg, request, answer):
    """What each token of an answer was drawn from: one full forward pass, without a cache."""
    ids = [*request.inputs, *answer.ids.tolist()]
    tokens = np.zeros((1, 64), np.int32)  # later tokens are not seen by earlier ones
    tokens[0, : len(ids)] = ids
    return full_forward(params, tokens, cfg=cfg)[0, len(request.inputs) - 1 : len(ids) - 1]


def check_scores(params, cfg, request, answer):
    logits = scores(params, cfg, request, answer)
    at = np.arange(len(answer.ids)), answer.ids
    want = jax.nn.log_softmax(logits)[at]
    np.testing.assert_allclose(answer.log_probs, want, atol=2e-4)
    adjusted = jax.nn.log_softmax(adjusted_logits(logits, request.sampling))[at]
    np.testing.assert_allclose(answer.sampled_log_probs, adjusted, atol=2e-3)
    if request.sampling.temperature == 0:
        assert answer.ids.tolist() == np.argmax(logits, -1).tolist()
        assert (answer.sampled_log_probs == 0).all()
    elif request.sampling == SamplingConfig(1.0):  # drawn from the model's own distribution
        np.testing.assert_allclose(answer.sampled_log_probs, answer.log_probs, atol=1e-5)
    else:
        assert (answer.sampled_log_probs > answer.log_probs + 1e-3).any()


# Gemma 2 has the windows of Mistral in every other layer.
@pytest.mark.long(but=1)
@pytest.mark.parametrize(
    "family", ["own", pytest.param("mistral", marks=pytest.mark.slow), "gemma2"]
)
def test_scores_are_those_of_a_full_forward(family):
    """Mistral's and Gemma 2's windows are shorter than these texts."""
    params, cfg = model(), CFG
    if family != "own":
        params, cfg, _ = open_checkpoint(GOLDEN / family, dtype="float32")
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(0, cfg.vocab, n).tolist(), 20, way, key=jax.random.key(n))
        for n, way in zip((14, 4, 9, 2, 1), [WAYS[i] for i in (0, 2, 4, 0, 1)], strict=True)
    ]
    made = dict(answers(Engine(params, cfg=cfg, **SIZES), requests))
    assert sorted(made) == [0, 1, 2, 3, 4]
    for index, answer in made.items():
        assert len(answer.ids) == 20
        check_scores(params, cfg, requests[index], answer)


def test_a_slot_is_free_at_once_when_a_request_ends():
    """Who waits is admitted before the others' burst is over."""
    want = alone(1, 3, 20, 1).ids.tolist()
    last = next(i for i in (1, 2, 3) if want[i] not in want[:i])
    short = dataclasses.replace(request(1, 3, 20, 1), stop_ids=want[last : last + 1])
    here = engine()
    for what in (request(2, 5, 20, 1), short, request(3, 2, 20, 0), request(4, 2, 20, 0)):
        here.submit(what)
    deltas = here.advance()
    for number in range(3):
        mine = [p for p in deltas if p.request == number]
        assert sum(len(p.ids) for p in mine) == last + 1  # not five, as one ended
        assert mine[-1].finish_reason == ("stop" if number == 1 else None)
    assert here.free == 1
    assert 3 in {p.request for p in here.advance()}


@pytest.mark.parametrize(("whole", "made"), [(False, 2), (True, 4)])
def test_whole_answers_may_end_together(whole, made):
    """A slot is wanted: the first end is seen, or the second of 32 slots, not the burst's."""
    here, limits = engine(slots=32, burst=8), [2, 4, *[12] * 31]
    numbers = [here.submit(request(1, 3, limit, 0)) for limit in limits]
    ends = [d.request for d in here.advance(whole=whole) if d.finish_reason]
    assert ends == [n for n, limit in zip(numbers, limits, strict=True) if limit <= made]
    assert here.waiting == 1 and here.free == len(ends)
    assert np.asarray(here._state.made)[2] == made


@pytest.mark.long
def test_the_caches_are_updated_in_place():
    """Nothing needs memory for another cache, nor for the parameters again."""
    cfg = dataclasses.replace(CFG, layers=(LayerConfig(HEADS, mlp=MlpConfig(2000)),) * 8)
    stacked = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), decoder.spec(cfg), is_leaf=is_spec
    )
    params = jax.eval_shape(transformer.by_layer, stacked)
    here = jax.eval_shape(
        lambda key: slots.init(
            key, cfg=cfg, slots=4, length=4096, stops=8, kind=jnp.dtype("f4"), how=How()
        ),
        jax.random.key(0),
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    options = {"cfg": cfg, "how": How()}
    step = slots.step.lower(params, here, number, number, most=8, **options)
    rows = jax.ShapeDtypeStruct((4,), jnp.int32)
    keys = (jax.eval_shape(lambda s: s.keys[0], here),) * 4
    requests = slots.SlotRequests(
        rows, number, rows, jax.ShapeDtypeStruct((4, 8), jnp.int32), keys, here.sampling
    )
    inputs = jax.ShapeDtypeStruct((16,), jnp.int32)
    admit = slots.admit.lower(params, here, inputs, number, requests, gap=0, **options)
    size = sum(x.size * 4 for x in jax.tree.leaves(here.caches))
    weights = sum(x.size * 4 for x in jax.tree.leaves(stacked["runs"]))
    for program in (step, admit):
        memory = program.compile().memory_analysis()
        assert memory.alias_size_in_bytes >= size
        assert memory.temp_size_in_bytes < (size + weights) / 6 < weights < size


@pytest.mark.long
def test_a_prompt_of_several_is_read_once_and_each_gets_what_it_gets_alone(monkeypatch):
    read = []
    plain = slots.admit
    note = lambda *args, **more: read.append(int(args[4].count)) or plain(*args, **more)  # noqa: E731
    monkeypatch.setattr(slots, "admit", note)
    same = [(3, 7, 9, 1), (3, 7, 2, 3), (3, 7, 9, 0, (5, 11)), (3, 7, 1, 1), (3, 7, 20, 2)]
    asked = [*same, (4, 7, 5, 1), *same[:2]]
    here = engine(slots=12)
    made = dict(answers(here, [request(*what) for what in asked]))
    assert read[:3] == [5, 1, 2]
    for index, what in enumerate(asked):
        want, got = alone(*what), made[index]
        np.testing.assert_array_equal(got.ids, want.ids)
        np.testing.assert_array_equal(got.log_probs, want.log_probs)
        assert got.finish_reason == want.finish_reason
    assert here.free == 12


def test_embeddings_are_prompts_too():
    ids = [3, 1, 4, 1, 5]
    rows = decoder.embed(model(), jnp.array(ids), cfg=CFG)
    for inputs in (rows, np.asarray(rows)):
        made = dict(answers(engine(), [Request(inputs, 9), Request(ids, 9)]))
        assert made[0].ids.tolist() == made[1].ids.tolist()
        np.testing.assert_allclose(made[0].log_probs, made[1].log_probs, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_each_token_says_which_weights_made_it(whole, ahead):
    """The head alone changes, so that the caches are those of both."""
    other = {**model(), "head": {"kernel": model()["head"]["kernel"][:, ::-1]}}
    here, what = engine(), request(5, 4, 12, 0)
    here.submit(what)
    deltas = here.advance(whole=whole, ahead=ahead)
    assert len(here._asked) == ahead
    assert here.update(other) == 1
    while here.busy:
        deltas += here.advance(whole=whole)
    answer = join(deltas)
    changed = int((answer.versions == 0).sum())
    assert changed == 1 + SIZES["burst"] < 12 == len(answer.ids)
    assert (np.diff(answer.versions) >= 0).all()
    for part, params in ((slice(0, changed), model()), (slice(changed, 12), other)):
        want = np.argmax(scores(params, CFG, what, answer), -1)
        assert answer.ids[part].tolist() == want[part].tolist()


def test_nothing_is_left_of_who_had_the_slot_before():
    here = engine()
    state = here._state
    spoilt = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.caches)
    here._state = state.replace(caches=spoilt)
    cases = [request(n, 4 + n, 9, 1) for n in range(3)]
    for index, answer in answers(here, cases):
        assert answer.ids.tolist() == alone(index, 4 + index, 9, 1).ids.tolist()


def test_requests_are_read_as_slots_become_free():
    here, taken = engine(), []

    def source():
        for n in range(40):
            taken.append(n)
            yield request(n % 10, 3, 2, 0)

    ended = 0
    for _ in answers(here, source()):
        ended += 1
        assert len(taken) <= ended + 2 * SIZES["slots"] + 1
    assert ended == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "the prompt is empty"),
        ({"inputs": [1, 23]}, "the id 23, the vocabulary ends at 22"),
        ({"inputs": np.zeros((2, 15), "f4")}, "width 15, the model's are 16"),
        ({"inputs": np.full((2, 16), np.nan, "f4")}, "not finite"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 39}, "prompt of 2 tokens and 39 new ones need 41; .* room for 40"),
        ({"stop_ids": (1, 2, 3)}, "has 3 stop ids; the engine takes 2"),
        ({"key": jax.random.key(0, impl="rbg")}, "key is of key<rbg>"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(change, words):
    here = engine()
    with pytest.raises(InputError, match=words):
        here.submit(dataclasses.replace(Request([1, 2], 3), **change))
    assert not here.busy
    assert here.advance() == []
    assert not here.cancel(0)


@pytest.mark.parametrize("name", SIZES)
def test_an_engine_of_nothing_is_refused(name):
    with pytest.raises(InputError, match=f"the engine's {name} must be at least 1"):
        engine(**{name: 0})


def test_lengths_are_few():
    assert [engines.round_up(n) for n in (1, 16, 17, 512, 513, 1025)] == [
        *(16, 16, 32, 512, 1024, 1536)
    ]


@pytest.mark.long
def test_nothing_is_traced_while_running(at_most):
    """Whatever the settings, lengths, weights and cancels, once the sizes of prompts were seen."""
    at_most(2, slots, "_read")  # prompts of up to 16 and 32 tokens
    at_most(1, slots, "_advance")
    here = engine()
    list(answers(here, [request(0, 4, 3, 0), request(1, 20, 3, 2)]))
    number = here.submit(request(0, 2, 9, 0))
    here.advance()
    here.cancel(number)
    at_most(0, slots, "_read")
    at_most(0, slots, "_advance")
    at_most(0, decoder, "embed")
    cases = [request(n, 1 + n, 1 + n, n % 5, (n,)) for n in range(12)]
    other, last = model(1), request(3, 3, 20, 1)
    with jax.no_tracing():
        here.update(other)
        assert len(dict(answers(here, cases))) == 12
        number = here.submit(last)
        here.advance()
        assert here.cancel(number)
        assert not here.busy
