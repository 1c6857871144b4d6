"""Rule tables: the mesh axes that split the logical axes of parameters and of activations."""

import dataclasses
from collections.abc import Mapping

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import LOGICAL_AXES
from pangu_jax.sharding.mesh import AXES

Table = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Two tables from a logical axis to the mesh axes that split it.

    Within one array the dimensions are considered in order, and a mesh axis that an earlier
    dimension uses is skipped: so a rule for `q_per_kv` applies if the mesh does not divide
    `kv_heads`, and one for `expert_mlp` if it does not divide the groups of experts.

    Raises:
      InputError: a logical axis or a mesh axis that does not exist.
    """

    params: Table
    activations: Table

    def __post_init__(self):
        for table in (self.params, self.activations):
            for axis, names in table.items():
                check_choice("logical axis of the rules", axis, LOGICAL_AXES)
                for name in names:
                    check_choice(f"what the rules split {axis} over", name, AXES)

    def __hash__(self) -> int:
        """Hash of the tables' items, so that a layout can be a static argument of `jax.jit`."""
        return hash((frozenset(self.params.items()), frozenset(self.activations.items())))


_TENSOR = {name: ("tensor",) for name in ("mlp", "expert_mlp", "kv_heads", "q_per_kv", "vocab")}
_EXPERT = {name: ("expert",) for name in ("group", "expert_mlp")}
# On data x tensor, 2 x 4 as published: requests and attention as data and tensor say, groups of
# experts over tensor, their hidden units over data, the shared expert's over both.
_HEADS = {"kv_heads": ("tensor",), "q_per_kv": ("tensor",)}
_H2P = {
    **_HEADS,
    "mlp": ("data", "tensor"),
    "vocab": ("data", "tensor"),
    "group": ("tensor",),
    "expert_mlp": ("data",),
}

_PARTS = {
    "ddp": Rules({}, {"batch": ("data",)}),
    "fsdp": Rules({"embed": ("fsdp",)}, {"batch": ("data", "fsdp")}),
    "tensor": Rules(_TENSOR, {**_TENSOR, "batch": ("data",)}),
    "expert": Rules(_EXPERT, {**_EXPERT, "batch": ("data", "expert")}),
    "h2p": Rules(_H2P, {**_HEADS, "mlp": ("tensor",), "vocab": ("tensor",), "batch": ("data",)}),
}


def preset(name: str) -> Rules:
    """The rules of a preset, or of several joined with "+".

    Args:
      name: ddp (batch split, parameters whole), fsdp (parameters split along the model width),
        tensor (heads, hidden units, vocabulary split), expert (expert groups split, or where
        they do not divide every expert's hidden units), h2p (Pangu Pro MoE's hierarchical layout of
        weights on the axes data and tensor; the shared expert's parts are gathered over data, where
        the paper gathers tokens), or a combination such as "fsdp+tensor".

    Raises:
      InputError: an unknown preset.

    Source: h2p arXiv 2505.21411, section 3.
    """
    parts = name.split("+")
    for part in parts:
        if part not in _PARTS:
            raise InputError(
                f"unknown sharding rules {part!r}; known: {', '.join(_PARTS)}, joined with +"
            )
    rules = [_PARTS[part] for part in parts]
    return Rules(_join([r.params for r in rules]), _join([r.activations for r in rules]))


def _join(tables: list[Table]) -> Table:
    names = {name for table in tables for name in table}
    taken = {name: {axis for table in tables for axis in table.get(name, ())} for name in names}
    return {name: tuple(axis for axis in AXES if axis in taken[name]) for name in sorted(names)}
