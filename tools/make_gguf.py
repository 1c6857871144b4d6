"""Writes a folder in the Hugging Face layout as a GGUF file, as llama.cpp's converter would.

For tests; it shares no code with the reader. What it writes is compared with transformers by
`make parity`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  numpy learns of bfloat16
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def main() -> None:
    """Writes model.gguf into each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--kind", default="F32", help="type of the matrices, such as Q8_0")
    options = parser.parse_args()
    for folder in options.folders:
        write(folder, folder / "model.gguf", kind=options.kind)


def write(
    folder: Path,
    out: Path,
    *,
    kind: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> None:
    """Writes one file.

    Args:
      folder: config.json and model.safetensors of a Llama, Qwen2 or Qwen3.
      out: the file.
      kind: type of the matrices' numbers; vectors are F32.
      metadata: further entries, or others; None leaves one out.
      tensors: further tensors, or others, by GGUF's names; None leaves one out.
      endian: byte order.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["architectures"][0]]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    found = {}
    for name, array in load_file(folder / "model.safetensors").items():
        array = array.astype(np.float32)
        if architecture == "llama" and "q_proj" in name:
            array = pair(array, heads)
        if architecture == "llama" and "k_proj" in name:
            array = pair(array, groups)
        found[rename(name)] = array
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = factors(rope, size)
    values = {
        "context_length": config["max_position_embeddings"],
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": groups,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "rope.freq_base": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
    }
    values = {f"{architecture}.{name}": value for name, value in values.items()}
    named = (metadata or {}).get("general.architecture", architecture)
    writer = gguf.GGUFWriter(out, named, endianess=endian)
    for name, value in {**values, **(metadata or {})}.items():
        if name != "general.architecture" and value is not None:
            add(writer, name, value)
    for name, array in {**found, **(tensors or {})}.items():
        if array is None:
            continue
        if array.ndim < 2 or kind == "F32":
            writer.add_tensor(name, array)
            continue
        of = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(array, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    """One entry of the metadata, of the type that llama.cpp gives it."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def rename(name: str) -> str:
    """GGUF's name of a tensor."""
    whole, kind = name.rsplit(".", 1)
    if whole in WHOLE:
        return f"{WHOLE[whole]}.{kind}"
    _, _, layer, part = whole.split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def pair(array: np.ndarray, heads: int) -> np.ndarray:
    """Puts row i of a head's first half beside row i of its second, as llama.cpp wants them."""
    size = len(array) // heads
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return array[order]


def factors(rope: Mapping[str, float], size: int) -> np.ndarray:
    """What Llama 3.1's scaling divides each frequency by.

    Source: the release of Llama 3.1, apply_scaling.
    """
    found = []
    for i in range(0, size, 2):
        length = 2 * np.pi * rope["rope_theta"] ** (i / size)
        original = rope["original_max_position_embeddings"]
        if length < original / rope["high_freq_factor"]:
            found.append(1.0)
        elif length > original / rope["low_freq_factor"]:
            found.append(rope["factor"])
        else:
            smooth = original / length - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


if __name__ == "__main__":
    sys.exit(main())
