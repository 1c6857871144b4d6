"""LoRA adapters as a tree transform: leaves beside the kernels, added inside the loss.

    spec = lora.attach(decoder.spec(cfg), LORA)
    params = lora.attach_params(params, spec, key=key)
    state = train(lora.adapted(loss, LORA), spec, ..., params=params, trainable=lora.TRAINED)
    params = lora.merge(state.params, LORA)

Source: "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec, init, is_spec, zeros
from pangu_jax.core.tree import flatten, split
from pangu_jax.train.step import BatchLoss, Loss

TRAINED = r".*/lora_(into|out)"  # the `trainable` of a training that freezes all else
_INTO, _OUT = "lora_into", "lora_out"
_MANY = ("layers", "expert", "group")  # axes along which there is one matrix each


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Settings of LoRA: the adapted kernels, rank and scale.

    Attributes:
      pattern: a regular expression that the full paths of adapted kernels match.
      rank: of the update of each matrix.
      alpha: the update is scaled by alpha / rank.
    """

    pattern: str = r".*/attention/(query|key|value|out)/kernel"
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"rank must be at least 1, got {self.rank}")


def attach(spec: Any, cfg: LoraConfig) -> Any:
    """The spec with two low-rank leaves beside each kernel that the pattern matches.

    A kernel of several dimensions counts as one matrix: its embed dimension, if that comes first or
    last, against all the others; otherwise its first against the others.

    Args:
      spec: tree of `Spec`.
      cfg: settings of LoRA.

    Raises:
      InputError: the pattern matches nothing, or a leaf that is not a kernel.
    """
    wanted = [n for n in flatten(spec, is_leaf=is_spec) if re.fullmatch(cfg.pattern, n)]
    if not wanted:
        raise InputError(f"{cfg.pattern!r} matches no parameter's whole path")
    for name in wanted:
        if name.rsplit("/", 1)[-1] != "kernel":
            raise InputError(f"{cfg.pattern!r} matches {name}; only kernels are adapted")
    return _walk(spec, "", lambda name, node: _with_factors(node, cfg, name in wanted))


def attach_params(params: Any, spec: Any, *, key: jax.Array) -> Any:
    """Adds the spec's further leaves to parameters; they do not change the model yet.

    Args:
      params: those of the model.
      spec: the result of `attach`.
      key: of the leaves with random initial values.
    """
    return _graft(params, init(split(spec, TRAINED)[0], key=key))


def merge(params: Any, cfg: LoraConfig) -> Any:
    """The plain parameters: every adapter merged into its kernel.

    Args:
      params: a tree with the leaves that `attach` describes.
      cfg: the same as there.
    """

    def plain(name: str, node: dict) -> dict:
        del name
        if _INTO not in node:
            return node
        rest = {k: v for k, v in node.items() if k not in (_INTO, _OUT)}
        return {**rest, "kernel": _merged(node, cfg)}

    return _walk(params, "", plain)


def adapted(loss: Loss | BatchLoss, cfg: LoraConfig) -> Loss | BatchLoss:
    """A model's loss as a function of its adapted parameters."""
    if isinstance(loss, BatchLoss):
        embed = loss.embed
        return dataclasses.replace(
            loss, embed=lambda params, *rest: embed(merge(params, cfg), *rest)
        )
    return lambda params, frozen, batch, key: loss(merge(params, cfg), frozen, batch, key)


def _merged(node: dict, cfg: LoraConfig) -> jax.Array:
    kernel, into, out = node["kernel"], node[_INTO], node[_OUT]
    matrix = jnp.matmul(into, out, precision=jax.lax.Precision.HIGHEST) * (cfg.alpha / cfg.rank)
    return kernel + matrix.reshape(kernel.shape).astype(kernel.dtype)


def _with_factors(node: dict, cfg: LoraConfig, wanted: bool) -> dict:
    if not wanted:
        return node
    kernel: Spec = node["kernel"]
    many = 0
    while many < len(kernel.axes) and kernel.axes[many] in _MANY:
        many += 1
    lead, axes, shape = kernel.shape[:many], kernel.axes[many:], kernel.shape[many:]
    at = len(axes) - 1 if axes[-1] == "embed" else 1
    rows, columns = math.prod(shape[:at]), math.prod(shape[at:])
    names = kernel.axes[:many]
    # A side that is a single axis keeps its name, so it is sharded as the kernel is.
    row, column = (part[0] if len(part) == 1 else None for part in (axes[:at], axes[at:]))
    into = Spec((*lead, rows, cfg.rank), (*names, row, None), Normal(rows**-0.5), kernel.dtype)
    out = Spec((*lead, cfg.rank, columns), (*names, None, column), zeros, kernel.dtype)
    return {**node, _INTO: into, _OUT: out}


def _walk(tree: Any, name: str, change: Any) -> Any:
    """The tree with every dict that holds a kernel changed; `change` gets the kernel's path."""
    if isinstance(tree, dict):
        inner = {k: _walk(v, f"{name}{k}/", change) for k, v in tree.items()}
        return change(f"{name}kernel", inner) if "kernel" in inner else inner
    if isinstance(tree, list | tuple):
        return type(tree)(_walk(v, f"{name}{i}/", change) for i, v in enumerate(tree))
    return tree


def _graft(params: Any, drawn: Any) -> Any:
    """The leaves of `params`, and those of `drawn` where `params` has none."""
    if isinstance(drawn, dict):
        return {k: _graft(params[k], v) if k in params else v for k, v in drawn.items()}
    if isinstance(drawn, list | tuple):
        return type(drawn)(_graft(a, b) for a, b in zip(params, drawn, strict=True))
    return params
