"""GGUF files: every family, type of numbers and rotary order; what is damaged or not supported."""

import importlib.util
import json
import shutil
from pathlib import Path

import chex
import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import gguf_file, hf
from pangu_jax.checkpoint.gguf_file import open_gguf
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten

GOLDEN = Path(__file__).parents[1] / "golden"
TOOL = Path(__file__).parents[2] / "tools" / "make_gguf.py"
FAMILIES = ("llama2", "llama3", "qwen2", "qwen3")  # llama3: scaled rope, biases, tied
QUERY = "blk.0.attn_q.weight"

_spec = importlib.util.spec_from_file_location("make_gguf", TOOL)
make_gguf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_gguf)


def write(path, case="llama2", **options):
    file = path / "model.gguf"
    make_gguf.write(GOLDEN / case, file, **options)
    return file


@pytest.mark.long(but=1)
@pytest.mark.parametrize("case", FAMILIES)
def test_it_is_read_as_the_folder_that_it_was_made_of(case, tmp_path):
    params, cfg = hf.load(open_gguf(write(tmp_path, case)))
    expected, same = hf.load(GOLDEN / case, dtype=jnp.float32)
    assert cfg == same
    chex.assert_trees_all_equal(params, expected)


def wide(folder, width=256):
    """A Llama of one layer whose rows are of whole blocks of every type."""
    rng, heads = np.random.default_rng(0), 4
    config = json.loads((GOLDEN / "llama2" / "config.json").read_text())
    config |= {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1,
               "head_dim": width // heads, "vocab_size": 16}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, array in load_file(GOLDEN / "llama2" / "model.safetensors").items():
        if "layers.1" in name:
            continue
        shape = [width] * array.ndim
        shape[0] = 16 if "embed" in name or "lm_head" in name else shape[0]
        shape[0] = width // 2 if "k_proj" in name or "v_proj" in name else shape[0]
        tensors[name] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return tensors


READ = [kind.name for kind in gguf.quants._type_traits]


@pytest.mark.long(but=3)
@pytest.mark.parametrize("kind", sorted(READ))
def test_every_type_of_numbers_that_the_library_reads(kind, tmp_path):
    wide(tmp_path)
    make_gguf.write(tmp_path, tmp_path / "model.gguf")
    tensors = {}
    rng = np.random.default_rng(1)
    of = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[of]
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items():
        if name.startswith("llama."):
            make_gguf.add(writer, name, field.contents())
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        if tensor.data.ndim < 2:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        # Any bytes are numbers of such a type, but their scales may be infinite.
        rows = (tensor.data.shape[0], tensor.data.shape[1] // block * size)
        data = rng.integers(0, 60, rows, np.uint8)
        tensors[tensor.name] = gguf.dequantize(data, of)
        writer.add_tensor(tensor.name, data, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params, _ = hf.load(open_gguf(tmp_path / "other.gguf"))
    found = flatten(params)
    up = np.asarray(found["runs/0/mlp/up/kernel"][0], np.float32)
    np.testing.assert_array_equal(up.T, tensors["blk.0.ffn_up.weight"])
    query = tensors[QUERY].reshape(4, 32, 2, 256)  # llama.cpp: the pair last
    halves = np.concatenate([query[:, :, 0], query[:, :, 1]], axis=1)
    got = np.asarray(found["runs/0/attention/query/kernel"][0], np.float32)
    np.testing.assert_array_equal(np.moveaxis(got, 0, -1).reshape(4, 64, 256), halves)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_halves_stay_halves_where_all_matrices_are(kind, dtype, tmp_path):
    params, cfg = hf.view(open_gguf(write(tmp_path, kind=kind)))
    hf.save(params, cfg, tmp_path / "out", family="llama")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {a.dtype for a in saved.values() if a.ndim > 1} == {np.dtype(dtype)}
    plain = load_file(GOLDEN / "llama2" / "model.safetensors")
    for name, array in plain.items():
        np.testing.assert_array_equal(saved[name], array.astype(saved[name].dtype), err_msg=name)


def test_a_file_that_mixes_types_becomes_float32(tmp_path):
    table = np.ones((48, 32), np.float32)
    file = write(tmp_path, kind="F16")
    make_gguf.write(GOLDEN / "llama2", file, kind="F16", tensors={"token_embd.weight": None})
    writer = gguf.GGUFWriter(tmp_path / "mixed.gguf", "llama")
    reader = gguf.GGUFReader(file)
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            make_gguf.add(writer, name, field.contents())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data))
    of = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", gguf.quantize(table, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params, _ = hf.load(open_gguf(tmp_path / "mixed.gguf"))
    assert {leaf.dtype for leaf in flatten(params).values()} == {jnp.dtype(jnp.float32)}


WRONG = {
    "architecture 'gemma'": {"metadata": {"general.architecture": "gemma"}},
    "expert_count is not supported": {"metadata": {"llama.expert_count": 8}},
    "sliding_window is not supported": {"metadata": {"llama.attention.sliding_window": 64}},
    "of type 'yarn' is not supported": {"metadata": {"llama.rope.scaling.type": "yarn"}},
    "rotation of 4 of 8": {"metadata": {"llama.rope.dimension_count": 4}},
    "different lengths": {"metadata": {"llama.attention.value_length": 4}},
    "of type 'linear' is not supported": {"metadata": {"llama.rope.scaling.factor": 2.0}},
    "lacks the metadata llama.attention.head_count": {
        "metadata": {"llama.attention.head_count": None}
    },
    "rope_theta must be": {
        "metadata": {"llama.rope.freq_base": "x"},
        "tensors": {"rope_freqs.weight": np.ones(4, np.float32)},
    },
    "num_attention_heads must be": {"metadata": {"llama.attention.head_count": [4, 4]}},
    "one of 2 parts": {"metadata": {"split.count": 2}},
    "lacks the tensor token_embd.weight": {"tensors": {"token_embd.weight": None}},
    "lacks the tensor model.layers.0.self_attn.q_proj.weight": {"tensors": {QUERY: None}},
    "has shape": {"tensors": {QUERY: np.ones((32, 16), np.float32)}},
    "is not of 4 heads": {"tensors": {QUERY: np.ones((30, 32), np.float32)}},
    "none of a llama": {"tensors": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}},
    "no use for": {"tensors": {"blk.2.attn_norm.weight": np.ones(32, np.float32)}},
    "does not hold the factors": {"tensors": {"rope_freqs.weight": np.full(4, 3.0, np.float32)}},
    "does not hold the factors of": {"tensors": {"rope_freqs.weight": np.ones(3, np.float32)}},
    "NaN or infinity": {"tensors": {QUERY: np.full((32, 32), np.nan, np.float32)}},
    "type F64": {"tensors": {"output_norm.weight": np.ones(32)}},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_named(sentence, tmp_path):
    file = write(tmp_path, **WRONG[sentence])
    with pytest.raises(InputError, match=sentence) as error:
        params, cfg = hf.view(open_gguf(file))
        hf.save(params, cfg, tmp_path / "out", family="llama")
    assert str(file) in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "sentence"),
    [(0.5, "not a whole GGUF"), (0.999, "not a whole GGUF"), (0.00002, "is not a GGUF file")],
)
def test_a_cut_file_is_refused(part, sentence, tmp_path):
    file = write(tmp_path)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(InputError, match=sentence):
        open_gguf(file)


def test_tensors_that_overlap_are_refused(tmp_path):
    file = write(tmp_path)
    reader = gguf.GGUFReader(file)
    first, second = reader.tensors[2:4]
    at = second.field.offset + sum(part.nbytes for part in second.field.parts[:-1])
    raw = bytearray(file.read_bytes())
    raw[at : at + 8] = first.field.parts[-1].tobytes()
    file.write_bytes(raw)
    with pytest.raises(InputError, match=f"{first.name} and {second.name} overlap"):
        open_gguf(file)


def test_another_byte_order_is_refused(tmp_path):
    with pytest.raises(InputError, match="little-endian"):
        open_gguf(write(tmp_path, endian=gguf.GGUFEndian.BIG))


def test_what_is_a_gguf_file(tmp_path):
    file = write(tmp_path)
    assert gguf_file.is_gguf(file)
    shutil.move(file, tmp_path / "blob")
    assert gguf_file.is_gguf(tmp_path / "blob")
    assert not gguf_file.is_gguf(tmp_path) and not gguf_file.is_gguf(tmp_path / "none.gguf")
    (tmp_path / "other").write_text("GG")
    assert not gguf_file.is_gguf(tmp_path / "other")
