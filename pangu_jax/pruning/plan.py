"""A pruning plan: the units of each layer that are kept, as JSON without weights; replayable."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.config import check_choice, load_config, save_config
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.pruning import axes

NORMS = ("none", "l2", "dim", "calibrated")


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The parts of one layer that are kept.

    Attributes:
      layer: its number in the original model.
      groups: its KV groups that stay, ascending.
      heads: for each group, `moved` ones after its own, the query heads that stay; equally many.
      channels: its FFN channels that stay, ascending.
      moved: KV groups taken over from removed layers, as (layer, group) (CLAP).
      moved_scale: factor of the out projection of each moved group; 1 without sandwich norms.
    """

    layer: int
    groups: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]
    moved: tuple[tuple[int, int], ...] = ()
    moved_scale: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """The scores by which a layer's units were chosen, rounded to six digits; higher is kept."""

    groups: tuple[float, ...] = ()
    channels: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A pruned model described in terms of the original one.

    Attributes:
      layers: the layers that stay, in order.
      hidden: channels of the residual stream that stay, ascending.
      width: D of the original model.
      sizes: groups, query heads per group, and FFN width of each original layer.
      norm: how RMSNorm gains are re-initialized when hidden channels go (SLNP): none, l2, dim,
        calibrated.
      norm_factors: for "calibrated", the factor of each norm by the norm's name.
      gain_correct: whether moved groups are corrected for the other layer's norm gain.
      method: pruning method that chose the units.
      target: the requested target.
      ffn_multiple: FFN widths are multiples of this.
      hidden_multiple: the width of the residual stream is a multiple of this.
      model_hash: of the original parameters, "" if not taken.
      text_hash: of the calibration windows.
      scores: scores by which units were chosen, by original layer; may be empty.
      similarity: mean cosine of each original layer's input and output; may be empty.
      hidden_scores: scores by which hidden channels were chosen; may be empty.
    """

    layers: tuple[LayerPlan, ...]
    hidden: tuple[int, ...]
    width: int
    sizes: tuple[axes.Sizes, ...]
    norm: str = "none"
    norm_factors: dict[str, float] = dataclasses.field(default_factory=dict)
    gain_correct: bool = True
    method: str = ""
    target: str = ""
    ffn_multiple: int = 1
    hidden_multiple: int = 1
    model_hash: str = ""
    text_hash: str = ""
    scores: tuple[LayerScores, ...] = ()
    similarity: tuple[float, ...] = ()
    hidden_scores: tuple[float, ...] = ()

    def __post_init__(self):
        check_choice("norm", self.norm, NORMS)
        if not self.layers:
            raise InputError("a plan must keep at least one layer")
        _ascending(self.hidden, self.width, "hidden")
        _ascending([part.layer for part in self.layers], len(self.sizes), "layers")
        for part in self.layers:
            self._check_layer(part)

    def _check_layer(self, part: LayerPlan) -> None:
        where, size = f"layer {part.layer}", self.sizes[part.layer]
        if not part.moved or part.groups:
            _ascending(part.groups, size.groups, f"{where} groups")
        _ascending(part.channels, size.ffn, f"{where} channels")
        if len(part.heads) != len(part.groups) + len(part.moved):
            raise InputError(f"{where}: heads must list those of each group, moved ones too")
        if len({len(heads) for heads in part.heads}) != 1:
            raise InputError(f"{where}: every group must keep equally many query heads")
        for heads in part.heads:
            _ascending(heads, size.heads, f"{where} heads")
        if part.moved_scale and len(part.moved_scale) != len(part.moved):
            raise InputError(f"{where}: moved_scale must have one number for each moved group")
        kept = {p.layer for p in self.layers}
        for source, group in part.moved:
            if not 0 <= source < len(self.sizes) or not 0 <= group < self.sizes[source].groups:
                raise InputError(f"{where}: there is no group {group} of layer {source} to move")
            if source in kept:
                raise InputError(f"{where}: layer {source} stays, so its groups cannot move")
        if len(set(part.moved)) != len(part.moved):
            raise InputError(f"{where}: a group is moved twice")


def identity(cfg: DecoderConfig) -> Plan:
    """The plan that keeps everything."""
    found = tuple(axes.sizes(layer) for layer in cfg.layers)
    layers = tuple(
        LayerPlan(
            i,
            tuple(range(size.groups)),
            (tuple(range(size.heads)),) * size.groups,
            tuple(range(size.ffn)),
        )
        for i, size in enumerate(found)
    )
    return Plan(layers, tuple(range(cfg.width)), cfg.width, found)


def check(plan: Plan, cfg: DecoderConfig) -> Plan:
    """Returns the plan if it was made for a model of these sizes.

    Raises:
      InputError: it was made for another; says which sizes differ.
    """
    found = tuple(axes.sizes(layer) for layer in cfg.layers)
    if (plan.width, plan.sizes) != (cfg.width, found):
        raise InputError(
            f"the plan is for a model of width {plan.width} and {len(plan.sizes)} layers "
            f"({_brief(plan.sizes)}), this one has width {cfg.width} and {len(found)} layers "
            f"({_brief(found)})"
        )
    return plan


def check_hash(plan: Plan, params: Any) -> None:
    """Raises InputError if the plan names another checkpoint by its hash."""
    found = digest(params)
    if plan.model_hash and plan.model_hash != found:
        raise InputError(
            f"the plan is for another checkpoint: its hash is {plan.model_hash}, "
            f"that of the parameters given {found}"
        )


def pruned_config(cfg: DecoderConfig, plan: Plan) -> DecoderConfig:
    """The configuration of the pruned model."""
    layers = tuple(
        axes.resized(
            cfg.layers[part.layer],
            axes.Sizes(len(part.heads), len(part.heads[0]), len(part.channels)),
        )
        for part in plan.layers
    )
    # Where dropped channels are zero, the mean of squares grows by D / D': so must what is added
    # to it, for the outputs to stay.
    eps = cfg.norm_eps
    if plan.norm == "dim" and len(plan.hidden) != cfg.width:
        eps = eps * cfg.width / len(plan.hidden)
    return dataclasses.replace(cfg, width=len(plan.hidden), layers=layers, norm_eps=eps)


def save(plan: Plan, path: str | Path) -> None:
    """Writes plan.json, whole or not at all."""
    save_config(plan, path)


def load(path: str | Path) -> Plan:
    """Reads plan.json.

    Raises:
      InputError: no such file, or not a plan; names the field.
    """
    return load_config(Plan, path)


def digest(params: Any) -> str:
    """A hash of every parameter's name, shape, type and value, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(np.asarray(leaf))
        total.update(f"{name} {array.shape} {array.dtype}".encode())
        total.update(array.view(np.uint8).reshape(-1))
    return total.hexdigest()[:16]


def rounded(values: Any) -> tuple[float, ...]:
    """Scores for a plan: six significant digits, so that the file stays small."""
    return tuple(float(f"{v:.6g}") for v in np.asarray(values, np.float64).ravel())


def _ascending(found: Sequence[int], size: int, where: str) -> None:
    if not found:
        raise InputError(f"plan {where}: nothing stays")
    if list(found) != sorted(set(found)):
        raise InputError(f"plan {where}: indices must ascend without repeats")
    if found[0] < 0 or found[-1] >= size:
        raise InputError(f"plan {where}: index {found[-1]} is not within 0 to {size - 1}")


def _brief(found: tuple[axes.Sizes, ...]) -> str:
    return "; ".join(
        f"{s.groups} groups of {s.heads} heads, FFN {s.ffn}" for s in dict.fromkeys(found)
    )
