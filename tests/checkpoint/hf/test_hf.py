"""Hugging Face folders: bitwise there and back, placed by layout, and refused by name."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, safetensors_files
from pangu_jax.checkpoint.hf import checkpoint
from pangu_jax.checkpoint.hf.tensors import TensorPlace
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, presets
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TENSORS = "model.safetensors"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


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


@pytest.mark.long(but=4)
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
    hf.save(*hf.view(GOLDEN / case), tmp_path / "third", family=family, source=GOLDEN / case)
    same_bits(tensors(tmp_path / "first"), tensors(tmp_path / "third"))  # from file to file
    if not family.endswith("moe") or "fused" not in case:  # fused tensors are written separately
        same_bits(tensors(tmp_path / "first"), tensors(GOLDEN / case))
        kept = json.loads((tmp_path / "first" / "config.json").read_text())
        assert kept == json.loads((GOLDEN / case / "config.json").read_text())


def test_small_shards_have_an_index_and_say_the_same(tmp_path, monkeypatch):
    params, cfg = hf.load(GOLDEN / "qwen3")
    made, write = {}, safetensors_files.write

    def seen(folder, shards):
        write(folder, shards)
        made.update({path.name: path.stat().st_ino for path in [folder, *folder.iterdir()]})

    monkeypatch.setattr(safetensors_files, "write", seen)
    hf.save(params, cfg, tmp_path / "out", family="qwen3", max_shard_bytes=8000)
    # What was written is what is there, under another name: a copy might be half a one.
    there = [tmp_path / "out", *(tmp_path / "out").glob("*.safetensors*")]
    assert set(made.values()) == {path.stat().st_ino for path in there}
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


@pytest.mark.long
@pytest.mark.parametrize("rules", ["fsdp", "expert"])
def test_each_device_gets_its_part_of_every_tensor(rules):
    where = Layout(make_mesh(**{rules: 4}, devices=jax.devices()[:4]), preset(rules))
    whole, cfg = hf.load(GOLDEN / "pangu_pro_moe", dtype=jnp.float32)
    split, _ = hf.load(GOLDEN / "pangu_pro_moe", dtype=jnp.float32, layout=where)
    chex.assert_trees_all_equal(split, whole)
    parts = [len({str(s.index) for s in x.addressable_shards}) for x in jax.tree.leaves(split)]
    assert parts.count(4) > 3


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
        ("llama2", {"architectures": ["RobertaModel"]}, "RobertaModel is not known"),
        ("llama2", {"architectures": "gone"}, "architectures must name one"),
        ("llama2", {"hidden_size": "gone"}, "lacks hidden_size"),
        ("llama2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama3", {"rope_parameters": "gone", "rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("mistral", {"layer_types": ["full_attention"]}, "only sliding_attention is supported"),
        ("mistral", {"sliding_window": 0}, "window must be at least 1"),
        ("mistral", {"sliding_window": "5"}, "sliding_window must be a whole number"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be positive"),
        ("gemma2", {"final_logit_softcapping": -1.0}, "logit_softcap must be positive"),
        ("gemma2", {"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers 3"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types has chunked_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("pangu_pro_moe", {"num_experts": 14}, "must divide the 14 experts"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama2", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ("llama2", {"architectures": [[]]}, "architectures must name one"),
        ("llama2", {"architectures": [None, "LlamaForCausalLM"]}, "architectures must name one"),
        ("llama2", {"num_hidden_layers": 10**8}, "num_hidden_layers must be at most 10,000"),
        ("pangu_pro_moe", {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10,000"),
        ("qwen3_moe", {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10,000"),
        ("qwen3_moe", {"num_hidden_layers": 9999, "num_experts": 2**20}, "number of experts"),
        ("llama2", {"hidden_size": 2**40}, "hidden_size must be at most 2,147,483,647"),
        ("llama2", {"rope_parameters": {"rope_theta": 10**400}}, "a number of 401 digits"),
        ("llama2", {"unread": 10**400}, "a number of 401 digits"),
        ("llama2", {"unread": [float("nan")]}, "the number NaN, which is not finite"),
        ("llama2", {"per_layer_config": {"²": {}}}, "per_layer_config names layer '²' of 2"),
        (
            "llama2",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_scaling of type 'yarn'",
        ),
        ("llama2", {"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear'"),
        (
            "llama2",
            {"rope_scaling": LLAMA3},
            "rope_parameters disagree: .*; keep one",
        ),
        ("llama3", {"rope_scaling": {"rope_theta": 1.0}}, "rope_scaling and rope_parameters disag"),
        ("llama2", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 0}}, "theta must be pos"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused_by_name(case, config, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        hf.read_config(copied(case, tmp_path, config=config))
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["gone", None])
def test_an_absent_key_is_the_familys_default_and_null_turns_it_off(value, tmp_path):
    def changed(case, *names):
        place = tmp_path / f"{case}-{names[0]}"
        cfg, _ = hf.read_config(copied(case, place, config=dict.fromkeys(names, value)))
        return cfg, [layer.attention for layer in cfg.layers]

    _, layers = changed("mistral", "sliding_window")
    assert {heads.window for heads in layers} == {4096 if value == "gone" else None}
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    cfg, layers = changed("gemma2", *caps)
    assert {heads.softcap for heads in layers} == {50.0 if value == "gone" else None}
    assert cfg.logit_softcap == (30.0 if value == "gone" else None)
    _, layers = changed("gemma2", "layer_types")
    assert [heads.window for heads in layers] == [5, None, 5]
    _, layers = changed("gemma2", "query_pre_attn_scalar")
    assert {heads.scale for heads in layers} == {1 / 16}


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
    from pangu_jax.checkpoint.hf import named, write_keys

    keys = write_keys(presets.pangu_pro_moe(), named("pangu-pro-moe"))
    (tmp_path / "config.json").write_text(json.dumps(keys))
    cfg, _ = hf.read_config(tmp_path)
    assert decoder.count(decoder.spec(cfg)) == 71_988_781_056
    assert decoder.count_active(cfg) == 16_498_139_136


def test_rope_parameters_and_rope_scaling_that_agree_are_read(tmp_path):
    keys = json.loads((GOLDEN / "llama3" / "config.json").read_text())
    folder = copied("llama3", tmp_path, config={"rope_scaling": keys["rope_parameters"]})
    assert hf.read_config(folder) == hf.read_config(GOLDEN / "llama3")


def test_the_original_length_beside_the_others_comes_first(tmp_path):
    folder = copied("llama3", tmp_path, config={"original_max_position_embeddings": 77})
    cfg, _ = hf.read_config(folder)
    assert cfg.rope.scaling.original_length == 77
    other = dataclasses.replace(cfg, norm_eps=1e-3)  # so that the keys are written anew
    hf.save(hf.view(folder)[0], other, tmp_path / "out", family="llama", source=folder)
    assert hf.read_config(tmp_path / "out")[0] == other


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    path = copied("llama2", tmp_path) / "config.json"
    path.write_text(path.read_text().replace("{", '{"rms_norm_eps": 1e-5,', 1))
    with pytest.raises(InputError, match=r"config\.json names 'rms_norm_eps' twice"):
        hf.read_config(path.parent)


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _head(factor, dtype=None):
    def add(found):
        head = found[EMBEDDING] * np.asarray(factor, found[EMBEDDING].dtype)
        found[HEAD] = head.astype(dtype or head.dtype)

    return add


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path, caplog):
    folder = copied("qwen3", tmp_path, change=_head(1))
    opened = hf.read_headers(folder)
    assert opened.cfg == hf.read_config(GOLDEN / "qwen3")[0] and opened.cfg.tied
    assert HEAD not in opened.stored and not caplog.messages


def test_a_head_that_differs_unties_the_model_and_says_so(tmp_path, caplog):
    folder = copied("qwen3", tmp_path, change=_head(2))
    params, cfg = hf.load(folder)
    assert not cfg.tied
    want = load_file(folder / TENSORS)
    np.testing.assert_array_equal(params["head"]["kernel"], want[HEAD].T)
    (message,) = set(caplog.messages)
    assert message.startswith("note: ") and HEAD in message and "not tied" in message
    hf.save(*hf.view(folder), tmp_path / "out", family="qwen3", source=folder)
    same_bits(tensors(tmp_path / "out"), want)
    assert hf.read_config(tmp_path / "out")[0] == cfg


@pytest.mark.parametrize("rest", ["shape", "type"])
def test_a_head_beside_a_tied_embedding_that_cannot_be_is_named(rest, tmp_path, caplog):
    def add(found):
        shape = found[EMBEDDING].shape
        found[HEAD] = np.zeros((3, 2), np.float32) if rest == "shape" else np.zeros(shape, np.int8)

    with pytest.raises(InputError, match=rf"lm_head\.weight has {rest}"):
        hf.view(copied("qwen3", tmp_path, change=add))


def test_a_tied_model_may_have_its_table_under_the_name_of_the_head(tmp_path):
    folder = copied(
        "qwen3", tmp_path, change=lambda found: found.update({HEAD: found.pop(EMBEDDING)})
    )
    hf.save(*hf.view(folder), tmp_path / "out", family="qwen3", source=folder)
    same_bits(tensors(tmp_path / "out"), tensors(GOLDEN / "qwen3"))


def test_the_prefix_of_names_may_be_missing(tmp_path):
    def strip(found):
        for name in list(found):
            found[name.removeprefix("model.")] = found.pop(name)

    for case in ("qwen3", "pangu_pro_moe"):
        folder = copied(case, tmp_path / case, change=strip)
        params, cfg = hf.view(folder)
        hf.save(params, cfg, tmp_path / case / "out", family=hf.read_config(folder)[1])
        same_bits(tensors(tmp_path / case / "out"), tensors(GOLDEN / case))
    both = copied("qwen3", tmp_path, change=_set("norm.weight", np.ones(32, np.float32)))
    with pytest.raises(InputError, match=r"norm\.weight is there both with and without model\."):
        hf.view(both)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", ["llama2", "qwen3_moe_fused"])
def test_what_is_not_finite_is_named_with_its_file(case, value, tmp_path):
    part = "mlp.down_proj.weight" if case == "llama2" else "mlp.experts.down_proj"
    name = f"model.layers.0.{part}"

    def spoil(found):
        found[name].reshape(-1)[-1] = value

    folder = copied(case, tmp_path, change=spoil)
    message = rf"model\.safetensors: {name} holds NaN or infinity"
    with pytest.raises(InputError, match=message):
        hf.load(folder)
    params, cfg = hf.view(folder)
    with pytest.raises(InputError, match=message):
        hf.save(params, cfg, tmp_path / "out", family=hf.read_config(folder)[1])
    assert [p.name for p in tmp_path.iterdir()] == ["changed"]


def test_values_of_ours_that_are_not_finite_are_not_saved(tmp_path):
    params, cfg = hf.load(GOLDEN / "llama2")
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(jnp.nan)
    with pytest.raises(InputError, match=r"^model\.norm\.weight holds NaN or infinity"):
        hf.save(params, cfg, tmp_path / "out", family="llama")


def test_loading_in_a_narrower_type_never_overflows(tmp_path):
    folder = copied(
        "llama2", tmp_path, change=_set("model.norm.weight", np.full(32, 1e6, np.float32))
    )
    with pytest.raises(
        InputError, match=r"model\.norm\.weight has values beyond the range of float16"
    ):
        hf.load(folder, dtype="float16")


def test_mixed_types_are_kept_one_by_one_or_made_one(tmp_path):
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16]

    def mix(found):
        for i, name in enumerate(sorted(found)):
            found[name] = found[name].astype(kinds[i % 3])

    folder = copied("llama2", tmp_path, change=mix)
    for dtype in (None, "bfloat16"):
        out = tmp_path / str(dtype)
        hf.save(*hf.view(folder), out, family="llama", dtype=dtype, source=folder)
        want = tensors(folder)
        want = want if dtype is None else {n: x.astype(dtype) for n, x in want.items()}
        same_bits(tensors(out), want)


def test_code_that_is_not_copied_is_not_named(tmp_path):
    auto = {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    folder = copied("pangu_embedded", tmp_path, config=auto)
    (folder / "configuration_x.py").write_text("raise SystemExit")
    params, cfg = hf.view(folder)
    for family in ("pangu-embedded", "llama"):
        hf.save(params, cfg, tmp_path / family, family=family, source=folder)
        keys = json.loads((tmp_path / family / "config.json").read_text())
        assert "auto_map" not in keys and not list((tmp_path / family).glob("*.py"))


def test_a_fused_tensor_is_read_once_though_experts_are_taken_one_by_one(tmp_path, monkeypatch):
    source = GOLDEN / "qwen3_moe_fused"
    read, check = [], checkpoint.check_finite

    def counted(name, array):
        read.append(array.size)
        check(name, array)

    monkeypatch.setattr(checkpoint, "check_finite", counted)
    there = sum(math.prod(stored.shape) for stored in safetensors_files.find(source).values())
    params, cfg = hf.view(source)
    hf.save(params, cfg, tmp_path / "out", family="qwen3-moe", source=source)
    assert sum(read) == there
    read.clear()
    hf.load(source)
    assert sum(read) == there


def test_parts_of_a_fused_tensor_are_its_columns_one_after_the_other():
    array = np.arange(24).reshape(2, 12)
    parts = [
        TensorPlace("x", (2, 12), (), (2, 4), (1, 0), part=(i, 3)).to_leaf(array) for i in range(3)
    ]
    np.testing.assert_array_equal(np.concatenate(parts).T, array)


def test_a_qwen2_that_does_not_say_how_long_it_reads_has_the_library_s_default(tmp_path):
    shutil.copytree(GOLDEN / "qwen2", tmp_path / "x")
    keys = json.loads((tmp_path / "x" / "config.json").read_text())
    del keys["max_position_embeddings"]
    (tmp_path / "x" / "config.json").write_text(json.dumps(keys))
    assert hf.read_config(tmp_path / "x")[0].max_length == 32768
