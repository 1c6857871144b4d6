"""Pruned models in the Hugging Face layout: uniform, zero-padded, or layer by layer.

| kind | layers | who loads it | speed |
|---|---|---|---|
| uniform | all of equal widths, refused otherwise | stock transformers | that of the widths |
| padded | zeros up to the widest layer | stock transformers | no gain over the widest layer |
| per-layer | unchanged, in `per_layer_config` | `checkpoint.hf`, so every command here | full |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.hf import named, write_keys
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import block_spec
from pangu_jax.nn.stack import join, split
from pangu_jax.pruning import axes
from pangu_jax.pruning.axes import Sizes

KINDS = ("uniform", "padded", "per-layer")
# Families whose forward pass is a Llama's: with biases on more projections they are written as one.
AS_LLAMA = ("llama", "pangu-embedded", "qwen2")
# Families whose layers have no biases.
WITHOUT_BIASES = ("qwen3", "mistral")
# Families of which stock transformers asks that the heads divide the hidden size.
DIVIDING = ("llama",)


def export(
    params: dict[str, Any],
    cfg: DecoderConfig,
    folder: str | Path,
    *,
    kind: str,
    family: str,
    source: str | Path | None = None,
    dtype: Any = None,
    companions: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, Any], DecoderConfig, str]:
    """Writes a pruned model; the folder appears whole or not at all.

    Args:
      params: tree of `decoder.spec(cfg)`.
      cfg: the model.
      folder: must not exist, or be empty.
      kind: one of `KINDS`.
      family: that of the original checkpoint.
      source: the original checkpoint, for its tokenizer and other keys.
      dtype: type of the tensors.
      companions: as in `checkpoint.hf.save`.

    Returns:
      The parameters and configuration as written, and the family they were written as.

    Raises:
      InputError: "uniform" with layers of different widths (names two), or a family that cannot
        express the pruned model (biases, sandwich norms).
    """
    if kind not in KINDS:
        raise InputError(f"export must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "uniform":
        check_uniform(cfg)
    if kind == "padded":
        params, cfg = pad(params, cfg, widest(cfg, family in AS_LLAMA))
    params, cfg, family = adapt_to_family(params, cfg, family, per_layer=kind == "per-layer")
    hf.save(
        params,
        cfg,
        folder,
        family=family,
        source=source,
        dtype=dtype,
        per_layer=kind == "per-layer",
        companions=companions,
    )
    return params, cfg, family


def check_uniform(cfg: DecoderConfig) -> None:
    """Raises InputError if two layers have different widths."""
    found = [axes.sizes(layer) for layer in cfg.layers]
    for i, size in enumerate(found):
        if size != found[0]:
            raise InputError(
                f"a uniform export needs layers of equal widths, but layer 0 has {_brief(found[0])}"
                f" and layer {i} {_brief(size)}; use padded or per-layer, or allocation equal"
            )


def widest(cfg: DecoderConfig, divide: bool) -> Sizes:
    """Widths that hold every layer; `divide` raises the groups until the heads divide D."""
    found = [axes.sizes(layer) for layer in cfg.layers]
    groups, heads = max(s.groups for s in found), max(s.heads for s in found)
    while divide and cfg.width % (groups * heads) and groups < cfg.width:
        groups += 1
    return Sizes(groups, heads, max(s.ffn for s in found))


def pad(
    params: dict[str, Any], cfg: DecoderConfig, size: Sizes
) -> tuple[dict[str, Any], DecoderConfig]:
    """Every layer at the given widths: the added units have zero weights, so they add nothing."""
    layers, new = [], []
    for layer, weights in zip(cfg.layers, split(params["runs"]), strict=True):
        grown = axes.resized(layer, size)
        want = flatten(block_spec(cfg.width, grown), is_leaf=is_spec)
        tree: dict[str, Any] = {}
        for path, leaf in flatten(weights).items():
            leaf = np.asarray(leaf)
            more = [(0, n - m) for n, m in zip(want[path].shape, leaf.shape, strict=True)]
            _place(tree, path, np.pad(leaf, more))
        layers.append(tree)
        new.append(grown)
    new_cfg = dataclasses.replace(cfg, layers=tuple(new))
    lengths = [number for _, number in transformer.run_lengths(new_cfg)]
    return {**params, "runs": join(layers, lengths)}, new_cfg


def adapt_to_family(
    params: dict[str, Any], cfg: DecoderConfig, family: str, *, per_layer: bool = False
) -> tuple[dict[str, Any], DecoderConfig, str]:
    """The model in terms that a family can express: its own, or a Llama's with zero biases added.

    Raises:
      InputError: neither can; names what the family cannot express.
    """
    try:
        write_keys(cfg, named(family), per_layer=per_layer)
        return params, cfg, family
    except InputError as error:
        if family not in AS_LLAMA or any(x.norm_place != "pre" for x in cfg.layers):
            raise InputError(
                f"{error}; for such a model take repair scale or none, or ridge without biases"
            ) from error
    params, cfg = with_biases(params, cfg)
    write_keys(cfg, named("llama"), per_layer=per_layer)
    return params, cfg, "llama"


def with_biases(params: dict[str, Any], cfg: DecoderConfig) -> tuple[dict[str, Any], DecoderConfig]:
    """Adds the missing biases as zeros: on all of q, k, v, o, and on gate, up, down."""
    names = [f"{name}_bias" for name in ("query", "key", "value", "out")]
    attention = any(getattr(x.attention, name) for x in cfg.layers for name in names)
    mlp = any(x.mlp.out_bias or x.mlp.in_bias for x in cfg.layers)
    layers = []
    for layer in cfg.layers:
        a = dataclasses.replace(layer.attention, **dict.fromkeys(names, attention))
        m = dataclasses.replace(layer.mlp, in_bias=mlp, out_bias=mlp)
        layers.append(dataclasses.replace(layer, attention=a, mlp=m))
    new = dataclasses.replace(cfg, layers=tuple(layers))
    runs = []
    for i, run in enumerate(params["runs"]):
        have, tree = flatten(run), {}
        for path, leaf in flatten(decoder.spec(new)["runs"][i], is_leaf=is_spec).items():
            kernel = have["mlp/down/kernel"]
            value = have[path] if path in have else jnp.zeros(leaf.shape, kernel.dtype)
            _place(tree, path, value)
        runs.append(tree)
    return {**params, "runs": runs}, new


def _brief(size: Sizes) -> str:
    return f"{size.groups} KV groups of {size.heads} heads and {size.ffn} FFN channels"


def _place(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
