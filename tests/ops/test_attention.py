"""Attention over packed rows: where documents begin, what a mask gives, and what is refused."""

import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.ops.attention import attention, choose, visible
from pangu_jax.ops.packed import pack, packed_mask

attention_module = importlib.import_module("pangu_jax.ops.attention")
LENGTH = 12
# Three documents; two and padding; one; five, one of a single token.
ROWS = np.array(
    [[1] * 3 + [2] * 4 + [3] * 5, [1] * 6 + [2] * 4 + [0] * 2, [1] * 12,
     [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 5]], np.int32)  # fmt: skip


def draw(size=4):
    rng = np.random.default_rng(0)
    heads = [(2, 2), (2,), (2,)]
    return [jnp.float32(rng.normal(size=(len(ROWS), LENGTH, *h, size))) for h in heads]


def by_mask(segments):
    at = np.broadcast_to(np.arange(LENGTH), segments.shape)
    return visible(segments, at, segments, at)


def test_documents_begin_where_segments_change():
    found = pack(jnp.asarray(ROWS), 4)
    np.testing.assert_array_equal(
        found.starts[:3], [[0, 3, 7, -1], [0, 6, 10, -1], [0, -1, -1, -1]]
    )
    np.testing.assert_array_equal(
        found.lengths[:3], [[3, 4, 5, -1], [6, 4, 2, -1], [12, -1, -1, -1]]
    )
    np.testing.assert_array_equal(found.fits, [True, True, True, False])
    assert pack(jnp.asarray(ROWS), 5).fits.all()
    many = pack(jnp.asarray(ROWS), 20)  # more than tokens
    assert many.starts.shape == (4, 20)
    assert many.fits.all()


def test_a_token_sees_its_document_up_to_itself():
    got = np.asarray(packed_mask(pack(jnp.asarray(ROWS), 5)))
    tokens = ROWS > 0
    np.testing.assert_array_equal(got[tokens], np.asarray(by_mask(ROWS))[tokens])
    assert not got[1, :10, 10:].any()  # nobody sees padding
    assert not got[1, 10:, :10].any()


@pytest.mark.parametrize("window", [None, 3])
def test_packed_rows_give_what_a_mask_gives_and_nan_where_they_do_not_fit(window):
    segments = jnp.asarray(ROWS)
    at = np.broadcast_to(np.arange(LENGTH), ROWS.shape)
    mask = visible(ROWS, at, ROWS, at, window=window)
    want = attention(*draw(), mask=mask)
    for most, fit in ((5, [0, 1, 2, 3]), (4, [0, 1, 2])):
        got = attention(*draw(), mask=pack(segments, most), window=window)
        tokens = (ROWS > 0)[fit]
        np.testing.assert_allclose(
            got[jnp.array(fit)][tokens], want[jnp.array(fit)][tokens], atol=1e-6
        )
    assert jnp.isnan(got[3]).all()


def test_what_packed_rows_cannot_be_is_refused():
    packed = pack(jnp.asarray(ROWS), 5)
    with pytest.raises(InputError, match="over packed rows is causal"):
        attention(*draw(), mask=packed, causal=False)
    for more in ({"mask": None}, {"mask": packed, "window": 3}, {"mask": packed, "softcap": 9.0}):
        with pytest.raises(InputError, match="cudnn_packed takes causal packed rows"):
            attention(*draw(), impl="cudnn_packed", **more)


@pytest.mark.parametrize("name", ["cudnn", "cudnn_packed"])
def test_cudnn_elsewhere_is_refused_in_a_sentence(name):
    mask = pack(jnp.asarray(ROWS), 5) if name == "cudnn_packed" else None
    with pytest.raises(InputError, match=f"by {name} is computed on NVIDIA GPUs, this is for cpu"):
        attention(*draw(), mask=mask, impl=name)


def test_the_choice_is_by_platform_type_and_what_is_asked():
    half, full = (jax.ShapeDtypeStruct((1, 8, 2, 2, 64), t) for t in (jnp.bfloat16, jnp.float32))
    assert choose("hopper", half, packed=True) == "cudnn_packed"
    assert choose("hopper", half, packed=True, window=4) == "cudnn"
    assert choose("hopper", half) == choose("gpu", half, packed=True) == "cudnn"
    assert choose("hopper", full, packed=True) == "reference"
    assert choose("hopper", half, 30.0, packed=True) == choose("cpu", half) == "reference"


def test_rows_that_could_hold_many_documents_take_a_mask(monkeypatch):
    asked = []
    monkeypatch.setattr(attention_module, "chip", lambda: "hopper")
    for name in ("cudnn", "cudnn_packed"):
        note = lambda query, *_, name=name: asked.append(name) or query  # noqa: E731
        monkeypatch.setitem(attention_module.IMPLEMENTATIONS, name, note)
    query, key, value = (x.astype(jnp.bfloat16) for x in draw())
    query = jnp.pad(query, [(0, 0)] * 4 + [(0, -query.shape[-1] % 8)])
    for most in (16, 17):
        attention(query, key, value, mask=pack(jnp.asarray(ROWS), most))
    assert asked == ["cudnn_packed", "cudnn"]


@pytest.fixture
def cudnn(monkeypatch):
    """As if cudnn were there, to see what it is told."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(attention_module, "chip", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)


@pytest.mark.parametrize(
    ("queries", "sources", "masked", "causal", "call"),
    [
        (8, 8, True, True, "ScaleBiasSoftmax"),
        (7, 7, True, True, "ScaleBiasSoftmax"),
        (6, 7, True, True, "ScaleBiasSoftmax"),
        (7, 7, False, True, "Softmax"),
        (8, 8, False, False, "Softmax"),
        (7, 7, False, False, "ScaleBiasSoftmax"),
    ],
)
def test_cudnn_takes_odd_lengths_forward_and_backward(
    cudnn, queries, sources, masked, causal, call
):
    shapes = ((4, queries, 2, 2, 64), (4, sources, 2, 64))
    query, other = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    mask = jnp.ones((4, queries, sources), bool) if masked else None

    def loss(query, key, value):
        return attention(query, key, value, mask=mask, causal=causal, impl="cudnn").sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(query, other, other)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"__cudnn$fmha{call}Backward" in text
    assert [x.shape for x in jax.tree.leaves(traced.out_info)] == [
        x.shape for x in (query, other, other)
    ]


@pytest.mark.parametrize("form", ["masked", "both ways", "causal", "plain"])
@pytest.mark.parametrize("length", [7, 63, 64])
def test_what_cudnn_is_given_in_training_changes_no_value(monkeypatch, length, form):
    plain, lengths = jax.nn.dot_product_attention, []

    def by_xla(query, key, value, **more):
        lengths.append((query.shape[1], key.shape[1]))
        return plain(query, key, value, **{**more, "implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention_module, "chip", lambda: "gpu")
    args = [jnp.concatenate([x] * 8, axis=1)[:, :length] for x in draw()]
    segments = jnp.asarray(np.concatenate([ROWS] * 8, axis=1)[:, :length])
    segments = segments.at[2, length - 2 :].set(0)
    positions = jnp.broadcast_to(jnp.arange(length), segments.shape)
    # A mask alone says what is seen: `causal` is left true.
    mask = visible(segments, positions, segments, positions, causal=form != "both ways")
    seen = jnp.any(mask, -1)[..., None, None, None]
    assert not seen.all()
    masked = form in ("masked", "both ways")
    mask = mask if masked else None

    def total(*args, impl):
        out = attention(*args, mask=mask, causal=form != "plain", impl=impl)
        out = jnp.where(seen, out, 0)
        return (out**2).sum(), out

    run = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    found, want = (jax.jit(partial(run, impl=impl))(*args) for impl in ("cudnn", "reference"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Even, and under a mask not of 64 over a multiple of cuDNN's tile.
    sources = {7: 8, 63: 64 if form == "causal" else 128, 64: 128 if masked else 64}
    assert lengths == [(length + length % 2, sources[length])]


@pytest.mark.parametrize("length", [LENGTH, LENGTH - 1])
def test_cudnn_is_told_where_documents_begin_forward_and_backward(cudnn, length):
    query, other = (jax.ShapeDtypeStruct((4, length, *h, 64), jnp.bfloat16) for h in ((2, 2), (2,)))

    def loss(query, key, value):
        packed = pack(jnp.asarray(ROWS[:, :length]), 5)
        out = attention(query, key, value, mask=packed, impl="cudnn_packed")
        assert out.shape == query.shape
        return out.sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(query, other, other)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(
        r'custom_call @(__cudnn\S+?)\((.*?)\).*?max_seg_per_batch\\?22?"?: (\d+)', text
    )
    assert [name for name, _, _ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert {most for _, _, most in calls} == {"5"}
    assert [x.shape for x in jax.tree.leaves(traced.out_info)] == [
        x.shape for x in (query, other, other)
    ]
