"""Pruned models as files: loaded back by us, and by transformers where it is installed."""

import dataclasses
import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder
from pangu_jax.pruning import axes, export, plan
from pangu_jax.pruning.absorb import absorb
from pangu_jax.pruning.plan import LayerPlan
from pangu_jax.pruning.prune import prune

QKV = {"query_bias": True, "key_bias": True, "value_bias": True}
FAMILIES = {
    "llama": {},
    "qwen2": QKV,
    "pangu-embedded": {**QKV, "out_bias": True},
    "qwen3": {"qk_norm": True},
}


def pruned(small, *, biased, uneven=False):
    """Two of four groups and some channels go; repairs leave biases on out and down."""
    base, rng = plan.identity(small.cfg), np.random.default_rng(0)
    parts = []
    for i, part in enumerate(base.layers):
        groups = (0, 1, 3) if uneven and i else (0, 2)
        channels = tuple(np.sort(rng.permutation(12)[: 8 if uneven and i else 6]).tolist())
        parts.append(LayerPlan(i, groups, part.heads[: len(groups)], channels))
    made = dataclasses.replace(base, layers=tuple(parts))
    params, cfg = prune(small.params, made, cfg=small.cfg)
    if not biased:
        return params, cfg
    layers = []
    for layer in cfg.layers:
        attention = dataclasses.replace(layer.attention, out_bias=True)
        mlp = dataclasses.replace(layer.mlp, out_bias=True)
        layers.append(dataclasses.replace(layer, attention=attention, mlp=mlp))
    for run in params["runs"]:
        for branch, name in (("attention", "out"), ("mlp", "down")):
            shape = (run["mlp_norm"]["scale"].shape[0], 16)
            run[branch][name]["bias"] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return params, dataclasses.replace(cfg, layers=tuple(layers))


@pytest.mark.parametrize(
    ("family", "biased", "written"),
    [
        ("llama", False, "llama"),
        ("llama", True, "llama"),
        ("qwen2", True, "llama"),
        ("qwen2", False, "qwen2"),
        ("pangu-embedded", True, "llama"),
        ("pangu-embedded", False, "pangu-embedded"),
        ("qwen3", False, "qwen3"),
    ],
)
def test_what_is_written_is_read_back_with_zeros_for_what_was_added(
    model, tmp_path, family, biased, written
):
    params, cfg = pruned(model(**FAMILIES[family]), biased=biased)
    out = tmp_path / "out"
    _, _, name = export.export(params, cfg, out, kind="uniform", family=family)
    assert name == written
    again, again_cfg = hf.load(out)
    before, after = flatten(params), flatten(again)
    assert before.keys() <= after.keys()
    for path, leaf in after.items():
        want = before.get(path, np.zeros(leaf.shape))
        np.testing.assert_array_equal(leaf, want, err_msg=path)
    mlp = again_cfg.layers[0].mlp
    assert mlp.out_bias == mlp.in_bias == biased


@pytest.mark.parametrize("bias", ["query_bias", "key_bias", "value_bias", "out_bias"])
def test_the_bias_of_a_single_projection_is_written(model, bias):
    small = model(**{bias: True})
    params, cfg, family = export.adapt_to_family(small.params, small.cfg, "llama")
    assert family == "llama" and all(getattr(x.attention, bias) for x in cfg.layers)
    np.testing.assert_allclose(small.logits(params, cfg), small.logits(), atol=1e-5)


def test_biases_that_a_family_cannot_hold_are_refused_by_name(model, tmp_path):
    params, cfg = pruned(model(qk_norm=True), biased=True)
    with pytest.raises(InputError, match=r"Qwen3ForCausalLM cannot express layers\[0\].*bias"):
        export.export(params, cfg, tmp_path / "out", kind="uniform", family="qwen3")
    sandwich = model(sandwich=True)
    with pytest.raises(InputError, match="norm_place"):
        export.export(
            sandwich.params, sandwich.cfg, tmp_path / "out", kind="uniform", family="llama"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_uneven_layers_go_padded_or_one_by_one_but_not_uniform(model, tmp_path):
    small = model()
    params, cfg = pruned(small, biased=True, uneven=True)
    with pytest.raises(InputError, match=r"layer 0 has 2 KV groups .* and layer 1 3 KV groups"):
        export.export(params, cfg, tmp_path / "no", kind="uniform", family="llama")
    want = small.logits(params, cfg)
    for kind in ("padded", "per-layer"):
        export.export(params, cfg, tmp_path / kind, kind=kind, family="llama")
        again, again_cfg = hf.load(tmp_path / kind)
        np.testing.assert_allclose(small.logits(again, again_cfg), want, atol=1e-5)
        assert (len(set(map(axes.sizes, again_cfg.layers))) == 1) == (kind == "padded")
    keys = json.loads((tmp_path / "per-layer" / "config.json").read_text())
    assert keys["per_layer_config"] == {
        "1": {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 8}
    }
    for wrong, message in (
        ({"1": {"rms_norm_eps": 1.0}}, "rms_norm_eps, not supported"),
        ({"7": {}}, "names layer '7' of 2"),
        ([1], "an object of objects"),
    ):
        text = json.dumps({**keys, "per_layer_config": wrong})
        (tmp_path / "per-layer" / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            hf.load(tmp_path / "per-layer")


def test_an_absorbed_sandwich_model_is_written_as_a_llama(model, tmp_path):
    small = model(sandwich=True)
    params, cfg, _ = absorb(small.params, small.tokens, cfg=small.cfg, max_rel_err=1.0)
    export.export(params, cfg, tmp_path / "out", kind="uniform", family="llama")
    again, again_cfg = hf.load(tmp_path / "out")
    assert again_cfg == cfg
    chex.assert_trees_all_equal(again, params)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["uniform", "padded"])
@pytest.mark.parametrize(
    ("family", "biased"),
    [
        ("llama", False),
        ("llama", True),
        ("qwen2", True),
        ("qwen2", False),
        ("qwen3", False),
        ("pangu-embedded", True),  # written as a Llama with biases
    ],
)
def test_transformers_loads_it_and_computes_the_same(model, tmp_path, kind, family, biased):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = model(**FAMILIES[family])
    params, cfg = pruned(small, biased=biased, uneven=kind == "padded")
    out = tmp_path / "out"
    export.export(params, cfg, out, kind=kind, family=family)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        want = theirs(torch.tensor(small.tokens[:2].astype(np.int64))).logits.numpy()
    hidden = decoder.apply(params, jnp.asarray(small.tokens[:2]), cfg=cfg).hidden
    np.testing.assert_allclose(decoder.logits(params, hidden, cfg=cfg), want, atol=1e-4)
