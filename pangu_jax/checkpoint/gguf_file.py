"""GGUF files (llama.cpp's single-file format), read as if they were Hugging Face checkpoints.

Source: github.com/ggml-org/ggml, docs/gguf.md; names and the order of rotary pairs are those that
llama.cpp's converter writes.
"""

import dataclasses
import itertools
import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from einops import rearrange

from pangu_jax.checkpoint.hf.families.config_keys import read, write_scaling
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.checkpoint.hf.families.registry import named
from pangu_jax.checkpoint.safetensors_files import StoredTensor
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import regular
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.rotary import Llama3Scaling, RopeConfig, frequencies

MAGIC = b"GGUF"
FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # ours, by llama.cpp's names
ROPE_FACTORS = "rope_freqs.weight"
LENGTHS = (8192, *(2**n for n in range(5, 20)))  # of a model's training before it was scaled
HALVES = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def _linear(part: str, leaf: str) -> dict[str, str]:
    start = "blk.{layer}." + part
    return {f"{start}.weight": f"{leaf}/kernel", f"{start}.bias": f"{leaf}/bias"}


# Our leaves by llama.cpp's names.
_LEAVES = {
    "token_embd.weight": "embed/table",
    "output_norm.weight": "norm/scale",
    "output.weight": "head/kernel",
    "blk.{layer}.attn_norm.weight": "attention_norm/scale",
    "blk.{layer}.attn_q_norm.weight": "attention/query_norm/scale",
    "blk.{layer}.attn_k_norm.weight": "attention/key_norm/scale",
    "blk.{layer}.ffn_norm.weight": "mlp_norm/scale",
    **_linear("attn_q", "attention/query"),
    **_linear("attn_k", "attention/key"),
    **_linear("attn_v", "attention/value"),
    **_linear("attn_output", "attention/out"),
    **_linear("ffn_gate", "mlp/gate"),
    **_linear("ffn_up", "mlp/up"),
    **_linear("ffn_down", "mlp/down"),
}
# Metadata that repeats the tensors' information, or does not affect the computation.
_SILENT = ("block_count", "vocab_size", "rope.dimension_count", "attention.value_length",
           "attention.key_length", "tensor_data_layout")  # fmt: skip
_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_OPTIONAL = ("attention.head_count_kv", "rope.freq_base")


@dataclasses.dataclass(frozen=True)
class Gguf:
    """An open GGUF file.

    Attributes:
      path: of the file.
      fields: the metadata, as the library has them; `value` reads one.
      tensors: the library's record of each: name, shape, tensor_type, data on the mapped file.
    """

    path: Path
    fields: dict[str, Any]
    tensors: list[Any]

    def __str__(self) -> str:
        return str(self.path)

    def value(self, name: str, default: Any = None) -> Any:
        """One entry of the metadata: a number, a text, a truth value, or a list of these.

        Raises:
          InputError: it is damaged.
        """
        if name not in self.fields:
            return default
        try:
            value = self.fields[name].contents()
        except (UnicodeDecodeError, IndexError, ValueError) as error:
            raise InputError(f"{self.path}: the metadata {name} is damaged: {error}") from error
        # 1e-5 as float32 is 9.999999747378752e-06: the shortest number of that value was meant.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def read_headers(self) -> tuple[DecoderConfig, Family, dict[str, StoredTensor]]:
        """The model that the metadata describes, and its tensors under the names of its family.

        Raises:
          InputError: the architecture or an option is not supported, or a tensor is not one of it.
        """
        architecture = self.value("general.architecture")
        if architecture not in FAMILIES:
            raise InputError(
                f"{self.path}: architecture {architecture!r:.40} is not read from GGUF; "
                f"{', '.join(FAMILIES)} are"
            )
        family = named(FAMILIES[architecture])
        try:
            keys = _keys(self, architecture)
            cfg = family.read(keys)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        return cfg, family, _stored(self, family, cfg)


@dataclasses.dataclass(frozen=True)
class Quantized(StoredTensor):
    """A tensor of a GGUF file; numbers in blocks are made float32 when it is viewed.

    Attributes:
      data: as the library has it, on the mapped file.
      heads: number of heads in its rows, if llama.cpp pairs them for its rotary embedding.
      whole: make halves float32 too, as the file mixes types.
    """

    data: np.ndarray
    heads: int | None = None
    whole: bool = True

    @property
    def numpy(self) -> np.dtype:
        """Float16 or bfloat16 where all matrices are stored so, else float32."""
        return np.dtype(np.float32) if self.whole else HALVES.get(self.dtype, np.dtype(np.float32))

    def view(self) -> np.ndarray:
        """The tensor, [outputs, inputs] for a matrix."""
        array = _values(self.data, self.dtype, self.numpy).reshape(self.shape)
        if self.heads is None:
            return array
        # llama.cpp turns neighbors (2i, 2i + 1), this library and transformers (i, i + C/2).
        return rearrange(array, "(h c two) ... -> (h two c) ...", h=self.heads, two=2)


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a file that starts with GGUF's magic bytes or is named *.gguf."""
    if not os.path.isfile(path):  # unlike Path, finds names that are too long absent
        return False
    if Path(path).suffix == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def open_gguf(path: str | Path) -> Gguf:
    """Reads a file's metadata and the locations of its tensors.

    Raises:
      InputError: it is not a complete GGUF file of this machine's byte order, or one of several
        parts.
    """
    import gguf  # takes a while

    path = regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head[:4] != MAGIC:
            raise InputError(f"{path} is not a GGUF file")
        if int.from_bytes(head[4:], "little") not in (2, 3):
            raise InputError(f"{path} is not a little-endian GGUF file of version 2 or 3")
        reader = gguf.GGUFReader(path)
    except InputError:
        raise
    except Exception as error:  # the library believes the file, and fails in many ways
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error
    opened = Gguf(path, dict(reader.fields), list(reader.tensors))
    ends = sorted((t.data_offset, t.data_offset + t.n_bytes, t.name) for t in opened.tensors)
    for (_, end, name), (start, _, other) in itertools.pairwise(ends):
        if start < end:
            raise InputError(f"{path} is not a whole GGUF file: {name} and {other} overlap")
    parts = opened.value("split.count", 1)
    if parts != 1:
        raise InputError(
            f"{path} is one of {parts} parts; join them first (llama-gguf-split --merge)"
        )
    return opened


def _keys(opened: Gguf, architecture: str) -> dict[str, Any]:
    """The metadata as the keys of a config.json."""
    start = architecture + "."
    own = {name.removeprefix(start) for name in opened.fields if name.startswith(start)}
    scaling = {name for name in own if name.startswith("rope.scaling.")}
    for name in sorted(own - scaling - set(_SIZES) - set(_SILENT)):
        if opened.value(start + name):
            raise InputError(f"the metadata {start}{name} is not supported")
    keys = {key: opened.value(start + name) for name, key in _SIZES.items()}
    for name, key in _SIZES.items():
        if keys[key] is None and name not in _OPTIONAL:
            raise InputError(f"lacks the metadata {start}{name}")
    lengths = {n: opened.value(f"{start}attention.{n}_length") for n in ("key", "value")}
    if len(set(lengths.values())) > 1:
        raise InputError(f"keys and values of different lengths are not supported: {lengths}")
    size = lengths["key"] or opened.value(start + "rope.dimension_count")
    turned = opened.value(start + "rope.dimension_count", size)
    if turned != size:
        raise InputError(f"a rotation of {turned} of {size} dimensions is not supported")
    names = {tensor.name: tensor for tensor in opened.tensors}
    embedding = names.get("token_embd.weight")
    if embedding is None:
        raise InputError("lacks the tensor token_embd.weight")
    keys |= {
        "head_dim": size,
        "vocab_size": int(embedding.shape[-1]),
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
    }
    keys = {name: value for name, value in keys.items() if value is not None}
    return keys | {"rope_scaling": _scaling(opened, start, names.get(ROPE_FACTORS), keys)}


def _scaling(opened: Gguf, start: str, factors: Any, keys: dict[str, Any]) -> dict | None:
    """Llama 3's scaling, of which a GGUF file holds the result; other kinds by their names."""
    # As in llama.cpp, a factor without a kind is linear.
    plain = opened.value(start + "rope.scaling.factor", 1.0) in (0.0, 1.0)
    kind = opened.value(start + "rope.scaling.type", "none" if plain else "linear")
    if kind != "none":
        return {"rope_type": kind}  # refused by name where it cannot be read
    if factors is None:
        return None
    found = np.asarray(factors.data, np.float32)
    size, theta = 2 * found.size, read(keys, "rope_theta", float, 10000.0)
    for length in LENGTHS if size and size == keys.get("head_dim", size) else ():
        scaling = Llama3Scaling(float(found.max(initial=1.0)), 1.0, 4.0, length)
        scaled = frequencies(size, RopeConfig(theta, scaling))
        if np.allclose(found * scaled, frequencies(size, RopeConfig(theta)), rtol=1e-4, atol=0):
            return write_scaling(scaling)
    raise InputError(f"{ROPE_FACTORS} does not hold the factors of Llama 3's rope scaling")


def _stored(opened: Gguf, family: Family, cfg: DecoderConfig) -> dict[str, StoredTensor]:
    kinds = {t.tensor_type.name for t in opened.tensors if len(t.shape) > 1}
    whole = len(kinds) > 1 or not kinds <= set(HALVES)
    for tensor in {t.tensor_type: t for t in opened.tensors}.values():
        _try_kind(opened.path, tensor)
    found = {}
    for tensor in opened.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        name, leaf, layer = _place(tensor.name, family, opened.path)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        heads = _heads(leaf, cfg.layers[layer].attention) if layer < len(cfg.layers) else None
        if heads and shape[0] % (2 * heads):
            raise InputError(f"{opened.path}: {tensor.name} of {shape} is not of {heads} heads")
        found[name] = Quantized(
            file=opened.path,
            dtype=tensor.tensor_type.name,
            shape=shape,
            offset=int(tensor.data_offset),
            data=tensor.data,
            heads=heads if family.name == "llama" else None,
            whole=whole,
        )
    return found


def _heads(leaf: str, attention: AttentionConfig) -> int | None:
    """Number of heads in the rows of a tensor that llama.cpp stores by pairs, else None."""
    if leaf.startswith("attention/query/"):
        return attention.kv_heads * attention.q_per_kv
    return attention.kv_heads if leaf.startswith("attention/key/") else None


def _place(name: str, family: Family, path: Path) -> tuple[str, str, int]:
    """A tensor's name in the family, its leaf in our tree, and its layer or 0."""
    match = re.match(r"blk\.(\d{1,6})\.", name)
    layer = int(match[1]) if match else 0
    leaf = _LEAVES.get("blk.{layer}." + name[match.end() :] if match else name)
    if leaf not in family.tensors:
        raise InputError(f"{path}: the tensor {name:.80} is none of a {family.name}")
    return family.tensors[leaf].format(layer=layer), leaf, layer


def _values(data: np.ndarray, kind: str, dtype: np.dtype) -> np.ndarray:
    import gguf

    if kind in HALVES:
        return data.view(HALVES[kind]).astype(dtype, copy=False)
    return gguf.dequantize(data, gguf.GGMLQuantizationType[kind])


def _try_kind(path: Path, tensor: Any) -> None:
    """Raises InputError for a type of numbers that the library does not read."""
    kind = tensor.tensor_type.name
    try:
        rows = tensor.data if tensor.data.ndim < 2 else tensor.data[:1]
        _values(rows, kind, np.dtype(np.float32))
    except Exception as error:
        raise InputError(
            f"{path}: {tensor.name} has numbers of type {kind}, which are not read"
        ) from error
