"""Perplexity by windows against one forward pass a token; what the stride may change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.packing import Tokens, tokenize
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.eval.perplexity import Perplexity, measure, measure_windows
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.sharding.layout import Layout, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

CFG = decoder.DecoderConfig(
    264, 8, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),), tied=True
)
TEXTS = ["a", "the cat sat on the mat", "", "£5", "another text that is longer than a window"]


@functools.cache
def model():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape), jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )


@functools.cache
def tokens():
    return tokenize([Document(str(i), t) for i, t in enumerate(TEXTS)], ByteTokenizer())


@jax.jit
def next_logits(params, ids, last):
    hidden = decoder.apply(params, ids, cfg=CFG).hidden[0, last]
    return decoder.logits(params, hidden, cfg=CFG)


def one_by_one(length, stride):
    """Nats token by token, each by its own forward pass over the context the protocol gives it."""
    nats, contexts = [], []
    for text in TEXTS:
        ids = [256, *text.encode()] if text else []
        for target in range(1, len(ids)):
            if target <= length:
                first = 0
            else:  # the window whose new tokens hold the target ends a whole number of strides on
                end = length + -(-(target - length) // stride) * stride
                first = min(end, len(ids) - 1) - length
            padded = np.zeros((1, 64), np.int32)
            padded[0, : target - first] = ids[first:target]
            scores = np.asarray(next_logits(model(), padded, target - first - 1), np.float64)
            scores -= scores.max()
            nats.append(np.log(np.exp(scores).sum()) - scores[ids[target]])
            contexts.append(target - first)
    return nats, contexts


@pytest.mark.parametrize(("length", "stride"), [(64, 64), (7, 7), (7, 3), (7, 1), (1, 1)])
def test_every_token_is_predicted_once_from_the_context_of_its_window(length, stride):
    nats, contexts = one_by_one(length, stride)
    found = measure(model(), tokens(), cfg=CFG, length=length, stride=stride, batch=3)
    assert found.tokens == len(nats) == sum(len(text.encode()) for text in TEXTS) == found.bytes
    assert found.nats == pytest.approx(sum(nats), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(np.mean(nats) / np.log(2), rel=1e-5)
    assert max(contexts) <= length
    if stride == 1 < length:
        assert contexts[-1] == length


def test_the_stride_changes_the_context_and_never_the_count():
    found = [measure(model(), tokens(), cfg=CFG, length=8, stride=s) for s in (8, 4, 1)]
    assert len({result.tokens for result in found}) == 1
    assert len({round(result.nats, 4) for result in found}) == 3


def test_documents_and_batches_do_not_see_one_another():
    together = measure(model(), tokens(), cfg=CFG, length=8, stride=4, batch=8)
    parts = [
        measure(
            model(),
            tokenize([Document("", text)], ByteTokenizer()),
            cfg=CFG,
            length=8,
            stride=4,
            batch=1,
        )
        for text in TEXTS
        if text
    ]
    assert together.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-6)
    assert together.tokens == sum(part.tokens for part in parts)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    zeros = jax.tree.map(np.zeros_like, model())
    found = measure(zeros, tokens(), cfg=CFG, length=16)
    assert found.perplexity == pytest.approx(264, rel=1e-6)


def test_max_tokens_stops_after_a_whole_document_and_counts_its_bytes():
    found = measure(model(), tokens(), cfg=CFG, length=8, max_tokens=2)
    assert found.tokens == found.bytes == 1 + len(TEXTS[1])
    steps = []
    measure(
        model(),
        tokens(),
        cfg=CFG,
        length=8,
        batch=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1][0] == steps[-1][1] == 1 + 3 + 1 + 6


def test_measuring_again_compiles_nothing(at_most):
    at_most(1, decoder, "apply")
    for most in (None, 2):  # ten windows, and four: a last batch has one
        measure(model(), tokens(), cfg=CFG, length=9, batch=3, max_tokens=most)


def test_parameters_split_over_devices_measure_the_same():
    layout = Layout(make_mesh(fsdp=4, tensor=2), preset("fsdp+tensor"))
    params = jax.device_put(model(), shardings(decoder.spec(CFG), layout))
    want = measure(model(), tokens(), cfg=CFG, length=8)
    found = measure(params, tokens(), cfg=CFG, length=8, how=How(layout))
    assert found.nats == pytest.approx(want.nats, rel=1e-6)


def test_the_protocol_is_said_in_words():
    words = Perplexity(1.0, 2, 3, 128, 32).protocol
    assert "128" in words
    assert "32" in words


def test_senseless_windows_and_no_text_are_refused():
    for options in ({"length": 0}, {"length": 4, "stride": 5}, {"length": 4, "stride": 0}):
        with pytest.raises(InputError, match="length"):
            measure(model(), tokens(), cfg=CFG, **options)
    with pytest.raises(InputError, match="batch"):
        measure(model(), tokens(), cfg=CFG, length=4, batch=0)
    empty = Tokens(np.array([256], np.uint16), np.array([0]), 0)
    with pytest.raises(InputError, match="nothing to predict"):
        measure(model(), empty, cfg=CFG, length=4)


def test_windows_are_measured_each_on_its_own():
    windows = cut_windows(tokens(), 12)
    apart = [measure_windows(model(), windows[i : i + 1], cfg=CFG) for i in range(len(windows))]
    whole = measure_windows(model(), windows, cfg=CFG, batch=2)
    assert len(windows) > 2 and whole.length == 12
    assert whole.tokens == sum(x.tokens for x in apart) == windows.size - len(windows)
    np.testing.assert_allclose(whole.nats, sum(x.nats for x in apart), rtol=1e-5)

    @jax.jit
    def logp(ids):
        hidden = decoder.apply(model(), ids, cfg=CFG).hidden
        return jax.nn.log_softmax(decoder.logits(model(), hidden, cfg=CFG))

    found = np.asarray(logp(windows))[:, :-1]
    want = -np.take_along_axis(found, windows[:, 1:, None], -1).sum()
    np.testing.assert_allclose(whole.nats, want, rtol=1e-5)


def test_without_a_begin_token_the_first_of_each_document_is_context_only():
    """What transformers gives with labels = input_ids, summed over documents."""
    tokenizer = dataclasses.replace(ByteTokenizer(), begin=())
    texts = [Document(t, t) for t in TEXTS]
    found = measure(
        model(), tokenize(texts, tokenizer, as_prompts=True), cfg=CFG, length=64, batch=3
    )
    want, number, size = 0.0, 0, 0
    for text in TEXTS:
        ids = list(text.encode())
        size += len(ids)
        for target in range(1, len(ids)):
            padded = np.zeros((1, 64), np.int32)
            padded[0, :target] = ids[:target]
            scores = np.asarray(next_logits(model(), padded, target - 1), np.float64)
            want += np.log(np.exp(scores - scores.max()).sum()) - scores[ids[target]] + scores.max()
            number += 1
    assert (found.tokens, found.nats) == (number, pytest.approx(want, rel=1e-5))
    assert found.bytes == number  # a byte a token: those of the text that were predicted
    assert "no begin token; every token but a document's first predicted once" in found.protocol
