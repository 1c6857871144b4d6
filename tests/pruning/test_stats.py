"""Statistics: streaming equals the tokens at once, merging, sharding, propagation."""

import dataclasses
import gc
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig, attention
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.block import block as block_of
from pangu_jax.nn.mlp import MlpConfig, mlp
from pangu_jax.nn.norm import rms_norm
from pangu_jax.nn.rotary import rotation
from pangu_jax.nn.stack import split
from pangu_jax.pruning import moments, pearson, repair, stats
from pangu_jax.pruning.stats import SweepConfig
from pangu_jax.sharding.mesh import make_mesh

RNG = np.random.default_rng(0)


def accumulate(x, chunk):
    found = moments.zeros(x.shape[-1], jnp.float64)
    for i in range(0, len(x), chunk):
        found = moments.add(found, jnp.asarray(x[i : i + chunk]))
    return found


def test_float32_inputs_far_from_zero_keep_their_deviations():
    x = 1000 + np.random.default_rng(5).normal(size=(6, 50, 4)) @ np.triu(np.ones((4, 4)))
    x = x.astype(np.float32)
    with jax.enable_x64(True):
        found = moments.zeros(4, jnp.float64)
        for window in x:
            found = moments.add(found, jnp.asarray(window[None]))
        cov = np.asarray(moments.covariance(found))
    want = np.cov(x.reshape(-1, 4).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(cov, want, rtol=1e-5, atol=1e-5)


def test_products_of_many_inputs_are_mirrored_across_the_diagonal():
    x = np.random.default_rng(3).normal(size=(2, 4, 1037))
    with jax.enable_x64(True):
        found = moments.add(moments.zeros(1037, jnp.float64), jnp.asarray(x)).outer
    flat = x.reshape(8, -1)
    np.testing.assert_allclose(found, flat.T @ flat, rtol=0, atol=1e-12)


def test_moments_do_not_depend_on_chunks_or_order():
    x = RNG.normal(size=(24, 5, 7)) * 3 + 40  # |mean| well above the deviation
    with jax.enable_x64(True):
        whole = accumulate(x, 24)
        flat = x.reshape(-1, 7)
        np.testing.assert_allclose(moments.mean(whole), flat.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance(whole), np.cov(flat.T, bias=True), rtol=1e-8)
        wanted = sum((np.abs(w).mean(0) ** 2) for w in x)
        np.testing.assert_allclose(whole.absolute, wanted, rtol=1e-12)
        for chunk in (1, 5, 24):
            other = accumulate(RNG.permutation(x), chunk)
            chex.assert_trees_all_close(other, whole, rtol=1e-8)
        merged = moments.merge(accumulate(x[:9], 4), accumulate(x[9:], 7))
        chex.assert_trees_all_close(merged, whole, rtol=1e-12)


def test_contributions_are_covariances_of_what_units_add():
    units, size, width = 4, 3, 5
    x, kernel = RNG.normal(size=(200, units, size)), RNG.normal(size=(units, size, width))
    each = np.einsum("nuc,ucd->nud", x, kernel)
    with jax.enable_x64(True):
        cov = moments.covariance(accumulate(x.reshape(200, 1, -1), 50))
        found = np.asarray(moments.contributions(cov, jnp.asarray(kernel)))
    for i in range(units):
        for k in range(units):
            for j in range(width):
                want = np.cov(each[:, i, j], each[:, k, j], bias=True)[0, 1]
                assert found[i, k, j] == pytest.approx(want, abs=1e-10)
    # And so is every Pearson term of a choice.
    keep = np.asarray([True, False, True, True])
    a, b = each[:, keep].sum(1), each.sum(1)
    want = sum(abs(np.corrcoef(a[:, j], b[:, j])[0, 1]) for j in range(width))
    assert pearson.similarity(found, keep) == pytest.approx(want, abs=1e-10)
    want = [
        sum(abs(np.corrcoef((b - each[:, i])[:, j], b[:, j])[0, 1]) for j in range(width))
        for i in range(units)
    ]
    np.testing.assert_allclose(pearson.removal_similarity(found), want, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_choice_and_repair_from_moments_are_those_on_the_tokens(chunk):
    """Pearson, swaps, slopes, offsets and errors, whatever the order and pieces of the text."""
    rng = np.random.default_rng(chunk)
    units, size, width, keep = 6, 2, 4, 3
    x = rng.normal(size=(50, 8, units, size)) @ rng.normal(size=(size, size)) + 5
    x[..., 1, :] += x[..., 0, :]
    kernel, bias = rng.normal(size=(units, size, width)), rng.normal(size=width)
    each = np.einsum("nuc,ucd->nud", x.reshape(-1, units, size), kernel)
    whole, centered = each.sum(1), each - each.mean(0)
    kept = pearson.choose(np.einsum("nij,nkj->ikj", centered, centered) / len(each), keep)
    with jax.enable_x64(True):
        sums = accumulate(rng.permutation(x).reshape(50, 8, -1), chunk)
        between = moments.contributions(moments.covariance(sums), jnp.asarray(kernel))
        np.testing.assert_array_equal(pearson.choose(np.asarray(between), keep), kept)
        flat = jnp.asarray(kernel.reshape(-1, width))
        new, shift, report = repair.fit(
            sums, None, flat, jnp.asarray(bias), np.repeat(kept, size), method="affine"
        )
    small = each[:, kept].sum(1)
    terms = [abs(np.corrcoef(small[:, j], whole[:, j])[0, 1]) for j in range(width)]
    assert pearson.similarity(np.asarray(between), kept) == pytest.approx(sum(terms), rel=1e-8)
    errors = []
    for j in range(width):
        slope, offset = np.polyfit(small[:, j], whole[:, j], 1)
        want = np.where(np.repeat(kept, size), slope * kernel.reshape(-1, width)[:, j], 0)
        np.testing.assert_allclose(new[:, j], want, rtol=1e-8, atol=1e-8)
        assert shift[j] == pytest.approx(offset + bias[j], rel=1e-8)
        errors.append(((whole[:, j] - slope * small[:, j] - offset) ** 2).mean())
    assert report.repaired == pytest.approx(np.mean(errors), rel=1e-8)


@pytest.mark.long
def test_a_sweep_sees_what_the_model_computes(model):
    small = model(sandwich=True, query_bias=True, qk_norm=True)
    found = stats.collect(small.params, small.tokens, cfg=small.cfg, sweep_cfg=SweepConfig(batch=3))
    x = decoder.embed(small.params, jnp.asarray(small.tokens), cfg=small.cfg)
    turn = rotation(jnp.arange(12)[None], 4, small.cfg.rope)
    one = small.cfg.layers[0]
    block = jax.jit(lambda w, x, t: block_of(w, x, t, None, cfg=one, eps=1e-5)[0])
    for layer, weights in enumerate(split(small.params["runs"])):
        got = found.layers[layer]
        y = block(weights, x, turn)
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert float(got.similarity) / float(got.tokens) == pytest.approx(cosine.mean(), abs=1e-6)
        normed = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5)
        normed = normed * np.asarray(weights["attention_norm"]["scale"], np.float64)
        want = (np.abs(normed).mean(1) ** 2).sum(0)
        np.testing.assert_allclose(got.norm_absolute[0], want, rtol=1e-5)
        both = moments.merge(got.heads, got.held_heads)
        assert float(both.tokens) == small.tokens.size > float(got.heads.tokens)
        x = y


def test_moments_of_a_site_are_those_of_its_inputs(model):
    small = model(layers=1)
    found = stats.collect(small.params, small.tokens, cfg=small.cfg).layers[0]
    (weights,) = split(small.params["runs"])
    x = decoder.embed(small.params, jnp.asarray(small.tokens), cfg=small.cfg)
    seen = {}
    turn = rotation(jnp.arange(12)[None], 4, small.cfg.rope)
    one = small.cfg.layers[0]
    attend = partial(attention, cfg=one.attention, eps=1e-5)
    normed = rms_norm(weights["attention_norm"], x, eps=1e-5)
    # An out projection that is the identity shows what it reads.
    eye = {"kernel": jnp.eye(32).reshape(4, 2, 4, 32)}
    seen["heads"], _ = attend({**weights["attention"], "out": eye}, normed, turn, None)
    branch, _ = attend(weights["attention"], normed, turn, None)
    normed = rms_norm(weights["mlp_norm"], x + branch, eps=1e-5)
    eye = {"kernel": jnp.eye(12)}
    seen["channels"] = mlp({**weights["mlp"], "down": eye}, normed, cfg=one.mlp)
    for name, value in seen.items():
        flat = np.asarray(value, np.float64).reshape(-1, value.shape[-1])
        both = moments.merge(getattr(found, name), getattr(found, f"held_{name}"))
        np.testing.assert_allclose(both.outer, flat.T @ flat, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(both.total, flat.sum(0), rtol=1e-4, atol=1e-4)
    want = (np.asarray(normed, np.float64) ** 2).sum((0, 1))
    np.testing.assert_allclose(found.mlp_squares, want, rtol=1e-5)


def test_units_that_are_kept_are_those_that_would_be_computed_again(model, monkeypatch):
    small, found = model(sandwich=True), {}

    class Half:
        def heads(self, layer, seen):
            return {"kernel": seen.weights["attention"]["out"]["kernel"] / 2}

        def channels(self, layer, seen):
            return {"kernel": seen.weights["mlp"]["down"]["kernel"] / 2}

    for keeps in (True, False):
        monkeypatch.setattr(stats, "_keeps_units", lambda *_, keeps=keeps: keeps)
        found[keeps] = stats.collect(small.params, small.tokens, cfg=small.cfg, visitor=Half())
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


@pytest.mark.long
def test_two_devices_find_what_one_does(model, monkeypatch):
    """Windows split over devices: sums are reduced across them by the compiler."""
    small = model(layers=1)
    want = stats.collect(small.params, small.tokens, cfg=small.cfg)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    params = jax.device_put(small.params, NamedSharding(mesh, PartitionSpec()))
    batches, rows = stats._batches, NamedSharding(mesh, PartitionSpec("data"))

    def split_over_devices(*arguments):
        embedded, held = batches(*arguments)
        return [jax.device_put(x, rows) for x in embedded], held

    monkeypatch.setattr(stats, "_batches", split_over_devices)
    found = stats.collect(params, small.tokens, cfg=small.cfg)
    assert len(found.layers[0].heads.outer.sharding.device_set) == 2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


@pytest.mark.long
def test_pruned_propagation_shows_later_layers_the_pruned_ones(model, at_most):
    """And all layers share a compilation: one with a pruned projection and one without."""
    small = model()
    for name in ("attention_half", "mlp_half"):  # looking at it, and going on in two ways
        at_most(3, stats, name)

    class Zero:
        def heads(self, layer, found):
            return jax.tree.map(jnp.zeros_like, dict(found.weights["attention"]["out"]))

        def channels(self, layer, found):
            return jax.tree.map(jnp.zeros_like, dict(found.weights["mlp"]["down"]))

    kept = {}
    for propagate in ("pruned", "dense"):
        kept[propagate] = []
        stats.sweep(
            small.params,
            small.tokens,
            cfg=small.cfg,
            visitor=Zero(),
            propagate=propagate,
            keep=kept[propagate].append,
        )
    dense = stats.collect(small.params, small.tokens, cfg=small.cfg).layers
    for i in range(2):
        np.testing.assert_array_equal(kept["dense"][i].heads.outer, dense[i].heads.outer)
    np.testing.assert_array_equal(kept["pruned"][0].heads.outer, dense[0].heads.outer)
    assert np.abs(kept["pruned"][0].channels.outer - dense[0].channels.outer).max() > 0.1
    assert np.abs(kept["pruned"][1].heads.outer - dense[1].heads.outer).max() > 0.1


def test_memory_does_not_grow_with_the_moments_of_more_text(model):
    small = model()
    few, many = (
        stats.memory(small.cfg, np.tile(small.tokens, (times, 1)), SweepConfig(), np.float32)
        for times in (10, 50)
    )
    # Only the boundary does: 4 bytes per token and channel. A short text's units are kept, too.
    assert many - few == 40 * small.tokens.size * small.cfg.width * 4
    short = stats.memory(small.cfg, small.tokens, SweepConfig(), np.float32)
    boundary = 9 * small.tokens.size * small.cfg.width * 4
    assert few - short == boundary - small.tokens.size * 32 * 4
    # And so it is: what lies on the device while a layer's units are chosen grows by just that.
    held = {}

    class Weigh:
        def heads(self, layer, found):
            held[times] = max(held.get(times, 0), sum(x.nbytes for x in jax.live_arrays()))

        channels = heads

    for times in (11, 19):
        gc.collect()
        tokens = np.tile(small.tokens, (times, 1))
        sweep_cfg = SweepConfig(batch=2)
        stats.sweep(small.params, tokens, cfg=small.cfg, sweep_cfg=sweep_cfg, visitor=Weigh(),
                    similarity=False)  # fmt: skip
    assert held[19] - held[11] == 8 * small.tokens.size * small.cfg.width * 4


def test_what_cannot_be_measured_is_refused(model):
    small = model()
    with pytest.raises(InputError, match=r"windows \[N, T\]"):
        stats.collect(small.params, small.tokens[:0], cfg=small.cfg)
    with pytest.raises(InputError, match="another tokenizer"):
        stats.collect(small.params, small.tokens + 20, cfg=small.cfg)
    with pytest.raises(InputError, match="propagate"):
        stats.sweep(small.params, small.tokens, cfg=small.cfg, propagate="no")
    run = small.params["runs"][0]["mlp"]["up"]
    run["kernel"] = run["kernel"].at[1, 0, 0].set(jnp.nan)
    with pytest.raises(InputError, match="layer 1 are not finite"):
        stats.collect(small.params, small.tokens, cfg=small.cfg)


def test_moments_are_narrow_where_layers_are_very_wide_and_on_tpus(monkeypatch):
    layer = LayerConfig(AttentionConfig(1, 1, 4), mlp=MlpConfig(8192))
    wider = dataclasses.replace(layer, mlp=MlpConfig(8193))
    models = [DecoderConfig(8, 4, layers, max_length=8) for layers in ((layer,), (layer, wider))]
    assert [stats.moments_type(cfg) for cfg in models] == ["float64", "float32"]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert stats.moments_type(models[0]) == "float32"
