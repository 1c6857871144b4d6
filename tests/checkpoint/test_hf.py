"""Hugging Face folders: bitwise there and back, placed by layout, and refused by name."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, presets
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TENSORS = "model.safetensors"


def tensors(folder):
    """All tensors of a folder by name, as raw bits."""
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype and array.shape == b[name].shape, name
        assert array.tobytes() == b[name].tobytes(), name


def copied(case, tmp_path, *, config=None, change=None):
    """A copy of a golden folder with keys or tensors changed."""
    folder = tmp_path / "changed"
    shutil.copytree(GOLDEN / case, folder)
    if config is not None:
        path = folder / "config.json"
        keys = {**json.loads(path.read_text()), **config}
        path.write_text(json.dumps({k: v for k, v in keys.items() if v != "gone"}))
    if change is not None:
        found = load_file(folder / TENSORS)
        change(found)
        save_file(found, folder / TENSORS)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_was_read_bit_by_bit(case, tmp_path):
    params, cfg = hf.load(GOLDEN / case)
    family = hf.read_config(GOLDEN / case)[1]
    hf.save(params, cfg, tmp_path / "first", family=family, source=GOLDEN / case)
    again, cfg_again = hf.load(tmp_path / "first")
    assert cfg_again == cfg
    same_bits(flatten(jax.tree.map(np.asarray, again)), flatten(jax.tree.map(np.asarray, params)))
    hf.save(again, cfg, tmp_path / "second", family=family, source=tmp_path / "first")
    same_bits(tensors(tmp_path / "first"), tensors(tmp_path / "second"))
    if not family.endswith("moe") or "fused" not in case:  # fused tensors are written separately
        same_bits(tensors(tmp_path / "first"), tensors(GOLDEN / case))
        kept = json.loads((tmp_path / "first" / "config.json").read_text())
        assert kept == json.loads((GOLDEN / case / "config.json").read_text())


def test_small_shards_have_an_index_and_say_the_same(tmp_path):
    params, cfg = hf.load(GOLDEN / "qwen3")
    hf.save(params, cfg, tmp_path / "out", family="qwen3", max_shard_bytes=8000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and sorted(set(index["weight_map"].values())) == files
    want = tensors(GOLDEN / "qwen3")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in want.values())
    same_bits(tensors(tmp_path / "out"), want)
    same_bits(
        flatten(jax.tree.map(np.asarray, hf.load(tmp_path / "out")[0])),
        flatten(jax.tree.map(np.asarray, params)),
    )


@pytest.mark.parametrize("rules", ["fsdp", "expert"])
def test_each_device_gets_its_part_of_every_tensor(rules):
    where = Layout(make_mesh(**{rules: 4}, devices=jax.devices()[:4]), preset(rules))
    whole, cfg = hf.load(GOLDEN / "pangu_pro_moe", dtype=jnp.float32)
    split, _ = hf.load(GOLDEN / "pangu_pro_moe", dtype=jnp.float32, layout=where)
    parts = 0
    for name, leaf in flatten(split).items():
        np.testing.assert_array_equal(leaf, flatten(whole)[name], err_msg=name)
        parts += len({str(s.index) for s in leaf.addressable_shards}) == 4
    assert parts > 3


def test_embedded_is_a_llama_with_biases_and_back(tmp_path):
    params, cfg = hf.load(GOLDEN / "pangu_embedded")
    hf.save(params, cfg, tmp_path / "llama", family="llama", source=GOLDEN / "pangu_embedded")
    keys = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert keys["architectures"] == ["LlamaForCausalLM"] and keys["attention_bias"] is True
    assert "bias" not in keys and "auto_map" not in keys
    same_bits(tensors(tmp_path / "llama"), tensors(GOLDEN / "pangu_embedded"))
    assert hf.load(tmp_path / "llama")[1] == cfg


@pytest.mark.parametrize(
    ("case", "family", "words"),
    [
        ("pangu_pro_moe", "llama", "cannot express"),
        ("qwen3", "llama", "qk_norm"),
        ("qwen2", "pangu-embedded", "out_bias|query_bias"),
        ("llama2", "gpt2", "unknown model family"),
    ],
)
def test_a_family_that_cannot_express_a_model_is_refused(case, family, words, tmp_path):
    params, cfg = hf.load(GOLDEN / case)
    with pytest.raises(InputError, match=words):
        hf.save(params, cfg, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_nothing_overflows(tmp_path):
    params, cfg = hf.load(GOLDEN / "llama2", dtype=jnp.float32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        hf.save(params, cfg, tmp_path / "full", family="llama")
    params["norm"]["scale"] = params["norm"]["scale"] * 1e6
    with pytest.raises(InputError, match=r"model\.norm\.weight has values beyond"):
        hf.save(params, cfg, tmp_path / "out", family="llama", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def _drop(name):
    return lambda found: found.pop(name)


def _set(name, array):
    return lambda found: found.update({name: array})


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("llama2", _drop("model.norm.weight"), r"lacks the tensor model\.norm\.weight"),
        (
            "pangu_pro_moe",
            _drop("model.layers.1.mlp.experts.7.up_proj.weight"),
            r"layers\.1\.mlp\.experts\.7\.up_proj",
        ),
        ("llama2", _set("model.extra", np.zeros(3, np.float32)), r"model\.extra .* no use"),
        (
            "llama2",
            _set("model.norm.weight", np.zeros((2, 3), np.float32)),
            r"model\.norm\.weight has shape \(2, 3\)",
        ),
        (
            "llama2",
            _set("model.norm.weight", np.zeros(32, np.int32)),
            r"model\.norm\.weight has type I32",
        ),
        (
            "llama2",
            _set("model.layers.1.input_layernorm.weight", np.zeros(32, ml_dtypes.bfloat16)),
            "share one array",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(case, change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        hf.load(copied(case, tmp_path, change=change))


def test_tensors_of_no_use_that_old_files_have_are_passed_over(tmp_path):
    def add(found):
        found["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    assert hf.load(copied("llama2", tmp_path, change=add))[1] is not None


@pytest.mark.parametrize(
    ("case", "config", "words"),
    [
        ("pangu_pro_moe", {"architectures": ["PanguProMoEV2ForCausalLM"]}, "does not group"),
        ("pangu_pro_moe", {"architectures": ["PanguUltraMoEForCausalLM"]}, "MLA"),
        ("llama2", {"architectures": ["BertModel"]}, "BertModel is not known"),
        ("llama2", {"architectures": "gone"}, "architectures must name one"),
        ("llama2", {"hidden_size": "gone"}, "lacks hidden_size"),
        ("llama2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama3", {"rope_parameters": "gone", "rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("pangu_pro_moe", {"num_experts": 14}, "must divide the 14 experts"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused_by_name(case, config, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        hf.read_config(copied(case, tmp_path, config=config))
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["gone", None])
def test_the_moe_model_needs_no_intermediate_size(value, tmp_path):
    folder = copied("pangu_pro_moe", tmp_path, config={"intermediate_size": value})
    assert hf.read_config(folder) == hf.read_config(GOLDEN / "pangu_pro_moe")


def test_pickled_weights_are_never_read(tmp_path):
    folder = copied("llama2", tmp_path)
    (folder / TENSORS).rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle runs code"):
        hf.load(folder)


def test_the_published_sizes_go_through_a_config_file(tmp_path):
    from pangu_jax.checkpoint.keys import write_keys
    from pangu_jax.checkpoint.names.registry import named

    keys = write_keys(presets.pangu_pro_moe(), named("pangu-pro-moe"))
    (tmp_path / "config.json").write_text(json.dumps(keys))
    cfg, _ = hf.read_config(tmp_path)
    assert decoder.count(decoder.spec(cfg)) == 71_988_781_056
    assert decoder.count_active(cfg) == 16_498_139_136
