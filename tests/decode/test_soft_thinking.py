"""Soft thinking against a loop that computes everything again, in numpy beside the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.decode.generate import generate
from pangu_jax.decode.soft_thinking import mixture, think, thought_prompt
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig
from pangu_jax.models import decoder, transformer
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

CFG = decoder.DecoderConfig(
    23, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),) * 2, embed_scale=2.0
)
PROMPT = [3, 1, 4, 1, 5]
SOFT = SoftThinkingConfig(
    think_tokens=5, think_temperature=0.8, think_top_k=6, think_top_p=0.9, think_min_p=0.3
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.5, jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )


@pytest.fixture(scope="module")
def last():
    """Logits behind embeddings [T, D], from a whole forward pass."""

    @jax.jit
    def logits(params, x, count):
        hidden = transformer.apply(params, x[None], cfg=CFG).hidden[0, count - 1]
        return decoder.logits(params, hidden, cfg=CFG)

    def padded(params, x):
        room = np.zeros((16 - len(x), CFG.width), np.float32)
        return np.asarray(logits(params, np.concatenate([x, room]), len(x)))

    return padded


def chosen(logits, soft):
    """{token: weight} and the entropy."""
    scores = np.float64(logits) / soft.think_temperature
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    entropy = -(probs * np.log(probs)).sum()
    kept = sorted(range(len(probs)), key=lambda i: -probs[i])[: soft.think_top_k]
    mass, some = sum(probs[i] for i in kept), []
    for i in kept:
        if sum(probs[j] for j in some) / mass >= soft.think_top_p:
            break
        some.append(i)
    some = [i for i in some if probs[i] >= soft.think_min_p * probs[kept[0]]]
    total = sum(probs[i] for i in some)
    return {i: probs[i] / total for i in some}, entropy


def naive(params, last, soft, stops=()):
    """Mixtures, likeliest tokens, entropies, and why it ended."""
    table = np.asarray(params["embed"]["table"]) * CFG.embed_scale
    x, found, cold = table[PROMPT], [], 0
    while True:
        weights, entropy = chosen(last(params, x), soft)
        best = next(iter(weights))
        cold = cold + 1 if entropy < soft.cold_entropy else 0
        if best in stops or cold >= soft.cold_steps or len(found) == soft.think_tokens:
            why = "token" if best in stops else "cold" if cold >= soft.cold_steps else "length"
            return x[len(PROMPT) :], *np.array(found).T, why
        found.append((best, entropy))
        x = np.concatenate([x, sum(w * table[i] for i, w in weights.items())[None]], dtype="f4")


def test_thoughts_are_those_of_a_loop_without_a_cache(params, last):
    found = think(params, PROMPT, cfg=CFG, soft=SOFT)
    inputs, ids, entropies, end = naive(params, last, SOFT)
    assert found.end == end == "length" and found.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(found.inputs, inputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.entropies, entropies, rtol=1e-4)
    # A token that ends thinking is not read, whenever it comes.
    for place in (0, 2):
        stop = think(params, PROMPT, cfg=CFG, soft=SOFT, stop_ids=(int(ids[place]), 22))
        count = ids.tolist().index(ids[place])
        assert stop.end == "token" and len(stop.ids) == count
        np.testing.assert_array_equal(stop.inputs, found.inputs[:count])


def test_what_is_certain_for_long_enough_is_thought_out(params, last):
    _, _, entropies, _ = naive(params, last, SOFT)
    level = float(np.sort(entropies)[2] + 1e-3)
    own = SoftThinkingConfig(**{**vars(SOFT), "cold_entropy": level, "cold_steps": 2})
    found, want = think(params, PROMPT, cfg=CFG, soft=own), naive(params, last, own)
    assert (found.end, len(found.ids)) == (want[3], len(want[1])) == ("cold", len(found.ids))


@pytest.mark.long
def test_one_token_alone_is_greedy_writing(params):
    hard = SoftThinkingConfig(think_tokens=5, think_top_k=1)
    found = think(params, PROMPT, cfg=CFG, soft=hard)
    wanted = generate(params, [PROMPT], cfg=CFG, max_new_tokens=7).rows()[0]
    assert found.ids.tolist() == wanted[:5]
    # What was thought is a prompt like any other.
    prompt = thought_prompt(params, PROMPT, found, cfg=CFG)
    assert generate(params, [prompt], cfg=CFG, max_new_tokens=2).rows()[0] == wanted[5:]
    ended = thought_prompt(params, PROMPT, found, (7, 8), cfg=CFG)
    rows = decoder.embed(params, jnp.asarray([[7, 8]]), cfg=CFG)[0]
    assert len(ended) == 12
    np.testing.assert_array_equal(ended[-2:], rows)


@pytest.mark.parametrize(
    ("cuts", "weights"),
    [
        ({"think_top_k": 3}, [10 / 19, 6 / 19, 3 / 19]),
        ({"think_top_k": 3, "think_top_p": 0.6}, [10 / 16, 6 / 16, 0]),
        ({"think_top_k": 3, "think_min_p": 0.4}, [10 / 16, 6 / 16, 0]),
        ({"think_top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
    ],
)
def test_each_cut_leaves_out_what_it_says(cuts, weights):
    soft = SoftThinkingConfig(
        **{"think_temperature": 1.0, "think_top_p": 1.0, "think_min_p": 0.0, **cuts}
    )
    probs = np.array([0.15, 0.5, 0.05, 0.3])
    ids, found, entropy = mixture(jnp.log(jnp.asarray(probs)), soft, jax.random.key(0))
    assert ids.tolist() == [1, 3, 0, 2][: len(weights)]
    np.testing.assert_allclose(found, weights, rtol=1e-5)
    np.testing.assert_allclose(entropy, -(probs * np.log(probs)).sum(), rtol=1e-5)


def test_noise_changes_the_weights_and_nothing_else():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=23) * 2, jnp.float32)
    plain = SoftThinkingConfig(think_top_p=0.8, think_top_k=8)
    noisy = SoftThinkingConfig(think_top_p=0.8, think_top_k=8, think_noise=0.5)
    ids, weights, entropy = mixture(logits, plain, jax.random.key(0))
    draws = [mixture(logits, noisy, jax.random.key(seed)) for seed in range(200)]
    kept = np.asarray(weights) > 0
    assert 1 < kept.sum() < 8
    for other, drawn, same in draws:
        np.testing.assert_array_equal(other, ids)
        assert same == entropy and (np.asarray(drawn)[~kept] == 0).all()
        np.testing.assert_allclose(drawn.sum(), 1, rtol=1e-5)
    # The likeliest of a Gumbel softmax is a draw from the distribution.
    shares = np.bincount([int(np.argmax(drawn)) for _, drawn, _ in draws], minlength=8) / 200
    np.testing.assert_allclose(shares, weights, atol=0.12)


def test_what_makes_no_sense_is_refused(params):
    for name, value in (
        ("think_tokens", 0),
        ("think_top_k", 0),
        ("think_temperature", 0.0),
        ("think_top_p", 0.0),
        ("think_min_p", 2.0),
        ("think_noise", -1.0),
        ("cold_entropy", -1.0),
        ("cold_steps", 0),
    ):
        with pytest.raises(InputError, match=name):
            SoftThinkingConfig(**{name: value})
    with pytest.raises(InputError, match="the prompt is empty"):
        think(params, [], cfg=CFG)
