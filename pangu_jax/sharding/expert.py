"""Expert parallelism: tokens travel to the groups of experts, and sums travel back.

With grouped routing every token has the same number of experts in every group. So a device that
holds some groups computes the same number of rows whatever the router does: tokens are gathered
over the devices that split them, and the sums are scattered back. No counts are exchanged, no
buffer is larger than the balanced one, and no device sorts tokens that it does not compute.

Source: arXiv 2505.21411, section 3; the exchange is that of its released serving code.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jax.sharding import PartitionSpec

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec
from pangu_jax.sharding.layout import Layout, batch_sharding, shardings


@dataclasses.dataclass(frozen=True)
class ExpertSplit:
    """The mesh axes that split a routed layer.

    Attributes:
      tokens: those that split the batch.
      groups: those that split the groups of experts.
      hidden: those that split the hidden units of every expert.
      kernels: {name: partition of the kernel, as it is stored}.
      width: {name: dimension of the kernel that is the model's width}.
    """

    tokens: tuple[str, ...]
    groups: tuple[str, ...]
    hidden: tuple[str, ...]
    kernels: Mapping[str, PartitionSpec]
    width: Mapping[str, int]


def expert_split(batch: int, kernels: Mapping[str, Spec], layout: Layout) -> ExpertSplit:
    """Derives how a layout splits a routed layer.

    Args:
      batch: rows of the batch; mesh axes that do not divide it compute the same tokens.
      kernels: specs of "gate" and others, with the axes group, expert, embed and expert_mlp.
      layout: its rules may split all but the axis expert: experts of one group have different
        numbers of tokens.

    Raises:
      InputError: they split that axis, or split the hidden units of two kernels differently.
    """
    partitions = {name: where.spec for name, where in shardings(dict(kernels), layout).items()}
    named = dict(zip(kernels["gate"].axes, map(_names, partitions["gate"]), strict=True))
    if named["expert"]:
        raise InputError(
            "sharding rules split a routed layer by the axes group and expert_mlp, not by expert: "
            "the experts of a group have different numbers of tokens"
        )
    for name, spec in kernels.items():
        other = dict(zip(spec.axes, map(_names, partitions[name]), strict=True))
        if other["expert_mlp"] != named["expert_mlp"]:
            raise InputError(
                f"sharding rules split expert_mlp over {named['expert_mlp']} in gate and over "
                f"{other['expert_mlp']} in {name}: give embed and expert_mlp different mesh axes"
            )
    return ExpertSplit(
        tokens=_names(batch_sharding((batch,), layout).spec[0]),
        groups=named["group"],
        hidden=named["expert_mlp"],
        kernels=partitions,
        width={name: spec.axes.index("embed") for name, spec in kernels.items()},
    )


def exchange(
    experts: Callable[..., jax.Array],
    x: jax.Array,
    ids: jax.Array,
    weights: jax.Array,
    kernels: Mapping[str, jax.Array],
    split: ExpertSplit,
) -> jax.Array:
    """The weighted sum of experts for this device's tokens; to be called inside `shard_map`.

    Args:
      experts: `experts(x, ids, weights, **kernels)`, such as `ops.expert_mlp.expert_mlp`.
      x: [T, D], this device's tokens.
      ids: int32 [T, G, k], indices inside the group, of all groups.
      weights: float32 [T, G, k].
      kernels: this device's parts.
      split: from `expert_split`.

    Returns:
      [T, D] in the type of `x`.
    """
    kernels = {
        name: _gather(kernel, _names(split.kernels[name][split.width[name]]), split.width[name])
        for name, kernel in kernels.items()
    }
    owners = split.groups + split.hidden
    # Where the same devices split tokens and experts, each computes its experts for all tokens.
    shared = tuple(name for name in owners if name in split.tokens)
    x, ids, weights = (_gather(a, shared, 0) for a in (x, ids, weights))
    if split.groups:
        own = kernels["gate"].shape[0]
        first = jax.lax.axis_index(split.groups) * own
        ids, weights = (jax.lax.dynamic_slice_in_dim(a, first, own, 1) for a in (ids, weights))
    y = experts(x, ids, weights, **kernels)
    if alone := tuple(name for name in owners if name not in shared):
        y = jax.lax.psum(y, alone)
    return jax.lax.psum_scatter(y, shared, tiled=True) if shared else y


def _gather(x: jax.Array, names: tuple[str, ...], dimension: int) -> jax.Array:
    return jax.lax.all_gather(x, names, axis=dimension, tiled=True) if names else x


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension of a partition."""
    return (entry,) if isinstance(entry, str) else entry or ()
