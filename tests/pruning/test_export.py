"""Pruned models as files: loaded back by us, and by transformers where it is installed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.pruning import allocate, axes, export
from pangu_jax.pruning.compress import Recipe, compress

FAMILIES = {
    "llama": {},
    "qwen2": {"query_bias": True, "key_bias": True, "value_bias": True},
    "pangu-embedded": {
        "query_bias": True,
        "key_bias": True,
        "value_bias": True,
        "out_bias": True,
    },
    "qwen3": {"qk_norm": True},
}


def pruned(small, target="ffn=0.5,groups=0.5", **recipe):
    return compress(
        small.params,
        small.tokens,
        cfg=small.cfg,
        target=allocate.parse(target),
        recipe=Recipe(**recipe),
    )


@pytest.mark.parametrize(
    ("family", "repair", "written"),
    [
        ("llama", "none", "llama"),
        ("llama", "ridge", "llama"),
        ("qwen2", "affine", "llama"),
        ("qwen2", "scale", "qwen2"),
        ("pangu-embedded", "bias", "llama"),
        ("pangu-embedded", "scale", "pangu-embedded"),
        ("qwen3", "ridge-no-bias", "qwen3"),
    ],
)
def test_what_is_written_loads_with_the_same_logits(model, tmp_path, family, repair, written):
    small = model(**FAMILIES[family])
    found = pruned(small, repair=repair)
    out = tmp_path / "out"
    _, _, name = export.export(found.params, found.cfg, out, kind="uniform", family=family)
    assert name == written
    params, cfg = hf.load(out)
    np.testing.assert_allclose(
        small.logits(params, cfg), small.logits(found.params, found.cfg), atol=1e-5
    )
    biased = repair in ("ridge", "affine", "bias")
    assert cfg.layers[0].mlp.out_bias == cfg.layers[0].mlp.in_bias == biased


def test_biases_that_a_family_cannot_hold_are_refused_by_name(model, tmp_path):
    small = model(**FAMILIES["qwen3"])
    found = pruned(small, repair="affine")
    with pytest.raises(InputError, match=r"Qwen3ForCausalLM cannot express layers\[0\].*bias"):
        export.export(found.params, found.cfg, tmp_path / "out", kind="uniform", family="qwen3")
    sandwich = model(sandwich=True)
    with pytest.raises(InputError, match="sandwich_norm"):
        export.export(
            sandwich.params, sandwich.cfg, tmp_path / "out", kind="uniform", family="llama"
        )
    assert not (tmp_path / "out").exists()


def uneven(model, **flags):
    small = model(layers=3, **flags)
    return small, pruned(small, "params=0.7", method="flap", repair="bias", allocation="global")


def test_uneven_layers_go_padded_or_one_by_one_but_not_uniform(model, tmp_path):
    small, found = uneven(model)
    assert len({axes.sizes(layer) for layer in found.cfg.layers}) > 1
    with pytest.raises(InputError, match=r"equal widths, but layer 0 has .* and layer"):
        export.export(found.params, found.cfg, tmp_path / "no", kind="uniform", family="llama")
    want = small.logits(found.params, found.cfg)
    for kind in ("padded", "per-layer"):
        export.export(found.params, found.cfg, tmp_path / kind, kind=kind, family="llama")
        params, cfg = hf.load(tmp_path / kind)
        np.testing.assert_allclose(small.logits(params, cfg), want, atol=1e-5)
        assert (len(set(map(axes.sizes, cfg.layers))) == 1) == (kind == "padded")
    keys = json.loads((tmp_path / "per-layer" / "config.json").read_text())
    assert keys["per_layer_config"]
    keys["per_layer_config"]["1"] = {"rms_norm_eps": 1.0}
    (tmp_path / "per-layer" / "config.json").write_text(json.dumps(keys))
    with pytest.raises(InputError, match="rms_norm_eps, not supported"):
        hf.load(tmp_path / "per-layer")


def test_an_absorbed_sandwich_model_is_written_as_a_llama(model, tmp_path):
    from pangu_jax.pruning.absorb import absorb

    small = model(sandwich=True)
    params, cfg, _ = absorb(small.params, small.tokens, cfg=small.cfg, max_rel_err=1.0)
    export.export(params, cfg, tmp_path / "out", kind="uniform", family="llama")
    again, again_cfg = hf.load(tmp_path / "out")
    np.testing.assert_allclose(small.logits(again, again_cfg), small.logits(params, cfg), atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["uniform", "padded"])
@pytest.mark.parametrize(
    ("family", "repair"),
    [
        ("llama", "none"),
        ("llama", "ridge"),
        ("qwen2", "affine"),
        ("qwen2", "none"),
        ("qwen3", "scale"),
    ],
)
def test_transformers_loads_it_and_computes_the_same(model, tmp_path, kind, family, repair):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    small = model(**FAMILIES[family])
    target = "ffn=0.5,groups=0.5"
    found = pruned(small, target, repair=repair)
    if kind == "padded":  # one layer narrower than the other
        layers = found.cfg.layers
        assert len(set(layers)) == 1
        _, found = uneven(model, **FAMILIES[family]) if repair == "ridge" else (None, found)
    out = tmp_path / "out"
    export.export(found.params, found.cfg, out, kind=kind, family=family)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        want = theirs(torch.tensor(small.tokens[:2].astype(np.int64))).logits.numpy()
    tokens = jnp.asarray(small.tokens[:2])
    hidden = decoder.apply(found.params, tokens, cfg=found.cfg).hidden
    np.testing.assert_allclose(decoder.logits(found.params, hidden), want, atol=1e-4)
    jax.clear_caches()
    assert dataclasses.is_dataclass(found)
