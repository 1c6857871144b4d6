"""Live against torch and transformers, on models that no golden file holds: `make parity`."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.gguf_file import open_gguf
from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.nn.rotary import Llama3Scaling, RopeConfig

pytestmark = pytest.mark.parity
TOOL = Path(__file__).parents[3] / "tools" / "make_golden.py"
GOLDEN = Path(__file__).parents[2] / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())

HEADS = AttentionConfig(2, 3, 8)
BIASED = AttentionConfig(2, 2, 8, True, True, True, True)
QKV = AttentionConfig(2, 2, 8, True, True, True)
NORMED = AttentionConfig(2, 2, 12, qk_norm=True)
SCALED = RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 32))


def uniform(attention, *, width=32, tied=False, rope=RopeConfig(), layers=None, eps=1e-5):
    layers = layers or (LayerConfig(attention, mlp=MlpConfig(40)),) * 3
    return decoder.DecoderConfig(
        48, width, layers, rope=rope, norm_eps=eps, tied=tied, max_length=128
    )


def gemma(*windows, softcap=2.0, logit_softcap=4.0):
    heads = dataclasses.replace(HEADS, scale=11**-0.5, softcap=softcap)
    layers = tuple(
        LayerConfig(
            dataclasses.replace(heads, window=window),
            mlp=MlpConfig(40, activation="gelu_tanh"),
            norm="zero_centered_rms",
            norm_place="sandwich",
        )
        for window in windows
    )
    cfg = uniform(HEADS, width=48, tied=True, layers=layers, eps=1e-6)
    return dataclasses.replace(cfg, embed_scale=48**0.5, logit_softcap=logit_softcap)


ROUTED = LayerConfig(NORMED, moe=MoEConfig(6, 1, 2, 8, renormalize=True))
EXPORTS = {
    "llama": [
        uniform(HEADS, width=48),
        uniform(BIASED, tied=True),
        uniform(HEADS, width=48, rope=SCALED),
    ],
    "mistral": [uniform(HEADS), uniform(dataclasses.replace(HEADS, window=6), tied=True)],
    "gemma2": [gemma(6, None), gemma(None, 7, 7, softcap=None, logit_softcap=None)],
    "qwen2": [uniform(QKV, eps=1e-6), uniform(QKV, tied=True)],
    "qwen3": [uniform(NORMED), uniform(NORMED, tied=True, rope=RopeConfig(1e6))],
    "qwen3-moe": [uniform(NORMED, layers=(LayerConfig(NORMED, mlp=MlpConfig(40)), ROUTED, ROUTED))],
}
EXPORTS = [(family, cfg) for family, configs in EXPORTS.items() for cfg in configs]


@pytest.fixture(scope="module")
def tool(golden_tool):
    return golden_tool("make_golden")


def random(cfg, seed=0):
    """Parameters all of whose kinds matter, and logits of a good size."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        name = jax.tree_util.keystr(path)
        scale = 0.3 if spec.shape[-1:] == spec.shape[1:] or "bias" in name else 0.25
        return jnp.asarray(
            rng.normal(size=spec.shape) * scale + (1.0 if "scale" in name else 0.0), jnp.float32
        )

    return jax.tree_util.tree_map_with_path(leaf, decoder.spec(cfg), is_leaf=is_spec)


def ours(params, tokens, cfg):
    forward = jax.jit(lambda p, t: decoder.logits(p, decoder.apply(p, t, cfg=cfg).hidden, cfg=cfg))
    return np.asarray(forward(params, jnp.asarray(tokens, jnp.int32)))


@pytest.mark.parametrize("case", CASES)
def test_fresh_models_of_every_family(case, tool, tmp_path):
    model, dtype = tool.build(case, 7)
    tokens = tool.sample(model, 7)
    want = tool.compute(model, tokens)
    tool.save(case, model, tmp_path / case, dtype)
    params, cfg = hf.load(tmp_path / case, dtype=jnp.float32)
    assert want.std() >= 0.5
    assert np.abs(ours(params, tokens.numpy(), cfg) - want).max() <= 1e-5


@pytest.mark.parametrize(
    ("family", "cfg"), EXPORTS, ids=[f"{f}{i}" for i, (f, _) in enumerate(EXPORTS)]
)
def test_stock_transformers_loads_what_is_exported(family, cfg, tool, tmp_path):
    import torch
    import transformers

    params = random(cfg)
    hf.save(params, cfg, tmp_path / "out", family=family)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.random.default_rng(1).integers(0, cfg.vocab, (2, 40))
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    assert want.std() >= 0.5
    assert np.abs(ours(params, tokens, cfg) - want).max() <= 1e-5 * max(1, np.abs(want).max())


def test_embedded_re_exported_as_llama_runs_in_stock_transformers(tool, tmp_path):
    import torch
    import transformers

    source = GOLDEN / "pangu_embedded"
    params, cfg = hf.load(source, dtype=jnp.float32)
    hf.save(params, cfg, tmp_path / "out", family="llama", source=source)
    keys = json.loads((tmp_path / "out" / "config.json").read_text())
    assert keys["attention_bias"] is True
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with np.load(source / "golden.npz") as golden, torch.no_grad():
        got = theirs.float().eval()(torch.tensor(golden["tokens"]).long()).logits.numpy()
        assert np.abs(got - golden["logits"]).max() <= 1e-5


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def differing(tool, folder, case, *, config=None, change=None):
    """A fresh model's folder with keys or tensors changed, and what transformers makes of it."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    model, dtype = tool.build(case, 7)
    tokens = tool.sample(model, 7)
    tool.save(case, model, folder, dtype)
    path = folder / "config.json"
    keys = {**json.loads(path.read_text()), **(config or {})}
    path.write_text(json.dumps({k: v for k, v in keys.items() if v != "gone"}))
    if change is not None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return theirs.eval()(tokens).logits.numpy(), tokens.numpy()


def untie(found):
    found["lm_head.weight"] = 2 * found["model.embed_tokens.weight"][::-1]


def tie(found):
    found["lm_head.weight"] = found["model.embed_tokens.weight"].copy()


def swap(found):
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")


def strip(found):
    for name in list(found):
        found[name.removeprefix("model.")] = found.pop(name)


@pytest.mark.parametrize(
    ("case", "config", "change"),
    [
        ("qwen3", None, untie),
        ("qwen3", None, tie),
        ("qwen3", None, swap),
        ("qwen3", None, strip),
        ("llama2", None, strip),
        ("llama2", {"rope_parameters": "gone", "rope_theta": 5e3, "rope_scaling": LLAMA3}, None),
        ("llama3", {"original_max_position_embeddings": 16}, None),
        ("llama3", {"rope_scaling": {}, "rope_theta": 3.0}, None),
    ],
)
def test_what_transformers_reads_otherwise_is_read_as_it_does(case, config, change, tool, tmp_path):
    want, tokens = differing(tool, tmp_path / "in", case, config=config, change=change)
    for folder in ("in", "out"):
        params, cfg = hf.load(tmp_path / folder, dtype=jnp.float32)
        assert np.abs(ours(params, tokens, cfg) - want).max() <= 1e-5 * np.abs(want).max()
        if folder == "in":
            lazy = hf.view(tmp_path / "in")
            family = hf.read_config(tmp_path / "in")[1]
            hf.save(*lazy, tmp_path / "out", family=family, source=tmp_path / "in")


def test_the_single_file_comes_before_an_index_as_in_transformers(tool, tmp_path):
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    want, tokens = differing(tool, tmp_path / "in", "llama2")
    folder = tmp_path / "in"
    found = load_file(folder / "model.safetensors")
    save_file(
        {n: -x for n, x in found.items()}, folder / "a.safetensors", metadata={"format": "pt"}
    )
    index = {"metadata": {}, "weight_map": dict.fromkeys(found, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree(folder, tmp_path / "gone")
    (tmp_path / "gone" / "a.safetensors").unlink()
    for each in (folder, tmp_path / "gone"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32)
        with torch.no_grad():
            again = theirs.eval()(torch.tensor(tokens)).logits.numpy()
        params, cfg = hf.load(each, dtype=jnp.float32)
        np.testing.assert_array_equal(again, want)
        assert np.abs(ours(params, tokens, cfg) - want).max() <= 1e-5


def test_what_named_code_that_is_not_copied_loads_in_stock_transformers(tool, tmp_path):
    import transformers

    auto = {"auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}}
    path = tmp_path / "in" / "config.json"
    differing(tool, tmp_path / "in", "llama2")
    path.write_text(json.dumps({**json.loads(path.read_text()), **auto}))
    hf.save(*hf.view(tmp_path / "in"), tmp_path / "out", family="llama", source=tmp_path / "in")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("case", ["llama2", "qwen2", "qwen3"])
def test_gguf_files_give_the_logits_of_transformers(case, kind, tool, tmp_path):
    import torch
    import transformers

    script = TOOL.with_name("make_gguf.py")
    spec = importlib.util.spec_from_file_location("make_gguf", script)
    make_gguf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_gguf)
    make_gguf.write(GOLDEN / case, tmp_path / "m.gguf", kind=kind)
    # From the file alone it would take another vocabulary and head size for granted.
    config = transformers.AutoConfig.from_pretrained(GOLDEN / case)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=config, dtype=torch.float32
    )
    tokens = tool.sample(model, 7)
    want = tool.compute(model, tokens)
    params, cfg = hf.load(open_gguf(tmp_path / "m.gguf"), dtype=jnp.float32)
    assert np.abs(ours(params, tokens.numpy(), cfg) - want).max() <= 1e-5
