"""Vectors of texts: in their order, whatever shares their batch, compiled for few shapes."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import targeting
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.eval import embedding
from pangu_jax.models import encoder
from pangu_jax.nn.how import How
from pangu_jax.sharding.layout import Layout, shardings
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

TEXTS = ["a b c", "", "z y x w v u t s r q p o n m l k j i h g", "C b, a", "b", "a b c"] * 3


@pytest.fixture(scope="module")
def model(encoder_folder):
    params, cfg = hf.load(encoder_folder, dtype="float32")
    cfg = dataclasses.replace(cfg, text_length=None)
    return params, cfg, load_tokenizer(encoder_folder)


def embed(model, texts, **options):
    params, cfg, tokenizer = model
    cfg = dataclasses.replace(cfg, **options.pop("cfg", {}))
    return embedding.embed(params, texts, cfg=cfg, tokenizer=tokenizer, **options)


def test_each_text_gets_what_it_gets_alone(model, at_most):
    at_most(2, encoder, "embed")  # rows of 16 and of 24 slots
    seen = []
    found = embed(model, TEXTS, batch=4, progress=lambda *n: seen.append(n))
    assert found.vectors.dtype == np.float32 and found.vectors.shape == (18, 32)
    assert found.cut == 0 and found.length == 24 and seen[-1] == (18, 18) and len(seen) == 5
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-5)
    first = found.vectors[: len(TEXTS) // 3]
    np.testing.assert_allclose(found.vectors, np.tile(first, (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(first[0], first[5])
    assert np.abs(first[0] - first[3]).max() > 1e-2  # the order of words matters
    many = embed(model, TEXTS * 3, batch=4)
    np.testing.assert_allclose(many.vectors, np.tile(found.vectors, (3, 1)), atol=1e-6)


def test_alone_and_by_hand(model):
    """With the rule written out: mean over [CLS] a b c [SEP], at length 1."""
    params, cfg, _ = model
    ids = np.array([[2, 4, 5, 6, 3]], np.int32)
    hidden = np.asarray(jax.jit(partial(encoder.apply, cfg=cfg))(params, ids).hidden)[0]
    mean = hidden.mean(0)
    alone = embed(model, ["a b c"]).vectors[0]
    np.testing.assert_allclose(alone, mean / np.linalg.norm(mean), atol=1e-6)
    with_others = embed(model, ["a b c", *TEXTS]).vectors[0]
    np.testing.assert_allclose(with_others, alone, atol=1e-6)
    last = embed(model, ["a b c"], cfg={"pooling": "last", "normalize": False}).vectors[0]
    np.testing.assert_allclose(last, hidden[-1], atol=1e-5)


def test_on_several_devices(model):
    layout = Layout(make_mesh(data=2, tensor=4), preset("ddp+tensor"))
    params = jax.device_put(model[0], shardings(encoder.spec(model[1]), layout))
    found = embed((params, *model[1:]), TEXTS[:4], batch=4, how=How(layout=layout)).vectors
    np.testing.assert_allclose(found, embed(model, TEXTS[:4], batch=4).vectors, atol=1e-6)


def test_what_is_cut_keeps_its_end_and_is_counted(model):
    found = embed(model, ["a b c d e", "a b"], max_length=4)
    assert (found.cut, found.length) == (1, 4)
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert embed(model, ["a b c", "a"], cfg={"text_length": 4}).cut == 1
    prefixed = embed(model, ["b", "a b"], cfg={"prefix": "a "}).vectors
    np.testing.assert_allclose(prefixed[0], embed(model, ["a b"] * 2).vectors[0], atol=1e-6)


def test_pairs_are_scored_with_their_types(model):
    params, cfg, tokenizer = model
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(32, 2)), "bias": rng.normal(size=2)}
    params = {**params, "classifier": {k: v.astype(np.float32) for k, v in head.items()}}
    cfg = dataclasses.replace(cfg, classes=2)
    pairs = [("a b", "c"), ("c", "a b"), ("a", "b c")]
    found = embedding.classify(params, pairs, cfg=cfg, tokenizer=tokenizer, batch=2).vectors
    ids = np.array([[2, 4, 5, 3, 6, 3]], np.int32)
    types = np.array([[0, 0, 0, 0, 1, 1]], np.int32)
    want = jax.jit(partial(encoder.classify, cfg=cfg))(params, ids, token_types=types)
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)
    assert np.abs(found[1:] - found[0]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        ([], {}, "there is no text"),
        (["a"], {"cfg": {"pooling": None}}, "pooling is not known"),
        (["a"], {"max_length": 25}, "cut to 25 tokens: the model takes 24"),
        (["a"], {"max_length": 0}, "cut to 0 tokens"),
        (["a"], {"max_length": 2}, "cut to 2 tokens: with the special tokens they have at least 3"),
        (["a"], {"batch": 0}, "batch must be at least 1, got 0"),
        (["a", "z"], {"cfg": {"vocab": 20}}, "gives 'z' the id 29, the model's vocabulary ends at"),
    ],
)
def test_what_cannot_be_embedded(texts, options, said, model):
    with pytest.raises(InputError, match=said):
        embed(model, texts, **options)


def test_types_that_the_model_lacks(model):
    params, cfg, tokenizer = model
    cfg = dataclasses.replace(cfg, classes=2, token_types=1)
    with pytest.raises(InputError, match=r"gives 2 token types, the model has 1"):
        embedding.classify(params, [("a", "b")], cfg=cfg, tokenizer=tokenizer)


def test_what_lacks_classes_or_has_bytes(model):
    params, cfg, tokenizer = model
    with pytest.raises(InputError, match="no classes to score"):
        embedding.classify(params, [("a", "b")], cfg=cfg, tokenizer=tokenizer)
    with pytest.raises(InputError, match="the tokenizer bytes gives 'boundary' the id 256"):
        embedding.embed(params, ["a"], cfg=cfg, tokenizer=ByteTokenizer())


@pytest.mark.parametrize(
    ("size", "length", "gpu", "cpu"),
    [
        (1, 512, 16, 16),
        (16, 512, 16, 16),
        (17, 512, 32, 32),
        (33, 512, 64, 48),
        (65, 512, 128, 80),
        (81, 512, 128, 96),
        (129, 512, 256, 160),
        (400, 512, 512, 448),
        (99, 100, 100, 100),
    ],
)
def test_rows_have_few_lengths(size, length, gpu, cpu):
    for platform, want in (("gpu", gpu), ("cpu", cpu)):
        with targeting(platform):
            assert embedding.padded(size, length) == want


def test_a_cpu_compiles_four_lengths_from_one_double_to_the_next():
    with targeting("cpu"):
        found = {embedding.padded(size, 1024) for size in range(1, 1025)}
    assert sorted(found) == [
        *range(16, 128, 16), *range(128, 256, 32), *range(256, 512, 64), *range(512, 1025, 128)
    ]  # fmt: skip
