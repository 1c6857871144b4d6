"""Embedders' checkpoints: torch's results from NV-Embed's tensors, and decoders without a head."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.hf.families import bare
from pangu_jax.core import spec as specs
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.models import embedder
from pangu_jax.models.pooling import pooled
from pangu_jax.nn.latent_attention import LatentAttentionConfig

GOLDEN = Path(__file__).parents[2] / "golden"
PREFIX = "weights/"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "nv_embed.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    found = tmp_path_factory.mktemp("nv_embed")
    weights = {n.removeprefix(PREFIX): golden[n] for n in golden if n.startswith(PREFIX)}
    save_file(weights, found / "model.safetensors")
    (found / "config.json").write_text(str(golden["config"]))
    return found


def changed(folder, out, **values):
    out.mkdir()
    keys = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**keys, **values}))
    shutil.copy(folder / "model.safetensors", out)
    return out


def test_the_numbers_are_torchs_and_every_leaf_matters(golden, folder):
    """Of GritLM's form, a mean of states that see both ways, and of NV-Embed's latent attention."""
    params, cfg = hf.load(folder, dtype=jnp.float32)
    assert hf.read_config(folder) == (cfg, "nv-embed")
    assert cfg.decoder.layers[0].attention.window is None and not cfg.causal and cfg.append_eos
    grit = dataclasses.replace(cfg, latent=None)

    @jax.jit
    def run(params):
        given = (golden["tokens"], golden["valid"])
        hidden = embedder.apply(params, *given, cfg=grit).hidden
        means = pooled(hidden, golden["states"], cfg=grit)
        return hidden, means, embedder.embed(params, *given, cfg=cfg, states=golden["states"])

    hidden, means, vectors = run(params)
    assert np.abs(np.asarray(hidden) - golden["hidden"])[golden["valid"]].max() <= 1e-5
    assert np.abs(means - golden["means"]).max() <= 1e-5
    assert np.abs(vectors - golden["vectors"]).max() <= 1e-5
    unseen = []
    for leaf in flatten(params):
        shifted = map_named(lambda n, x, leaf=leaf: jnp.roll(x, 1) if n == leaf else x, params)
        if np.abs(run(shifted)[2] - golden["vectors"]).max() <= 1e-3:
            unseen.append(leaf)
    assert not unseen


@pytest.mark.long
def test_what_is_written_is_what_was_read(folder, tmp_path):
    params, cfg = hf.load(folder)
    for name, source in (("new", None), ("same", folder)):
        hf.save(params, cfg, tmp_path / name, family="nv-embed", source=source)
        again, found = hf.load(tmp_path / name)
        assert found == cfg
        jax.tree.map(np.testing.assert_array_equal, again, params)
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == load_file(folder / "model.safetensors").keys()
    for change, said in (({"pooling": "last"}, "cannot express pooling"),
                         ({"prefix": "a"}, "cannot express prefix"),
                         ({"append_eos": False}, "cannot express append_eos")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            other = dataclasses.replace(cfg, **change)
            hf.save(params, other, tmp_path / "other", family="nv-embed")
    with pytest.raises(InputError, match="a MistralModel cannot express latent"):
        hf.save(params, cfg, tmp_path / "other", family="mistral-embedder")


OWN = {"num_latents_value": 6, "num_cross_heads": 3, "cross_dim_head": 5, "hidden_dim": 32}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask_type": "c"}, "mask_type is 'c'; only 'b' is supported"),
        ({"padding_side": "left"}, "padding_side is 'left'"),
        ({"text_config": 3}, "text_config must be an object"),
        ({"latent_attention_config": {**OWN, "latent_dim": 16}}, "latent_dim is 16, the model's"),
        ({"latent_attention_config": OWN}, "latent_dim is 4096, the model's width 32"),
        ({"latent_attention_config": {**OWN, "latent_dim": 32, "num_cross_heads": 0}},
         "latent heads must be at least 1"),
        ({"latent_attention_config": {**OWN, "latent_dim": 32, "num_latents_value": 7}},
         r"latents has shape \(6, 32\), config.json says \(7, 32\)"),
    ],
)  # fmt: skip
def test_what_is_no_nv_embed_is_named(values, said, folder, tmp_path):
    with pytest.raises(InputError, match=said):
        hf.load(changed(folder, tmp_path / "bad", **values))


def test_what_released_files_leave_out():
    """NV-Embed-v2's config.json names the kind of its latent attention, and no size."""
    text = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336}
    text |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    keys = {"text_config": text, "latent_attention_config": {"model_type": "latent_attention"}}
    cfg = hf.named("nv-embed").read(keys)
    assert cfg.latent == LatentAttentionConfig(latents=512, heads=8, head_dim=4096, units=16384)
    assert cfg.normalize and not cfg.pool_prefix and not cfg.causal
    assert specs.count(embedder.spec(cfg)) == 7_851_016_192


@pytest.mark.long(but=1)
@pytest.mark.parametrize("case", ["mistral", "gemma2", "qwen3"])
def test_decoders_without_a_head(case, tmp_path):
    """As transformers saves a MistralModel: names without "model.", no head; and back."""
    params, cfg = hf.load(GOLDEN / case)
    params, cfg = embedder.from_decoder(params, cfg)
    assert "head" not in params
    cfg = dataclasses.replace(cfg, pooling="weighted", pool_prefix=False, prefix="q: ")
    if case == "mistral":
        params, cfg = embedder.bidirectional(params, cfg)
    family = hf.families_of(cfg)
    name = next(name for name in family if name.startswith(case.removesuffix("2")))
    hf.save(params, cfg, tmp_path / "out", family=name)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "embed_tokens.weight" in names and not any("lm_head" in n for n in names)
    keys = json.loads((tmp_path / "out" / "config.json").read_text())
    assert keys["architectures"][0].endswith("Model") and keys[bare.CAUSAL] == cfg.causal
    again, found = hf.load(tmp_path / "out")
    assert found == cfg
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_decoder_that_sees_both_ways_is_no_decoder(tmp_path):
    """transformers 5 lets all tokens see all where is_causal is false."""
    folder = changed(GOLDEN / "mistral", tmp_path / "both", is_causal=False)
    with pytest.raises(InputError, match=r"config\.json: is_causal is false, so it is no decoder"):
        hf.load(folder)
    folder = changed(folder, tmp_path / "bare", architectures=["MistralModel"])
    assert not hf.read_config(folder)[0].causal
    with pytest.raises(InputError, match=r"lm_head\.weight is a tensor that config\.json has no"):
        hf.load(folder)
