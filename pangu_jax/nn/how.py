"""How a model is computed: options passed unchanged through every call, as one frozen value."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from pangu_jax.core.config import check_choice, check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import chip
from pangu_jax.nn.stack import check_remat
from pangu_jax.ops import attention, cache_write, deform_sample, expert_mlp, selective_scan
from pangu_jax.sharding.layout import Layout

# The operators whose implementation a caller may choose, and these implementations.
OPERATORS = {
    "attention": attention.IMPLEMENTATIONS,
    "cache_write": cache_write.IMPLEMENTATIONS,
    "deform_sample": deform_sample.IMPLEMENTATIONS,
    "expert_mlp": expert_mlp.IMPLEMENTATIONS,
    "selective_scan": selective_scan.IMPLEMENTATIONS,
    "selective_states": selective_scan.FORMS,
}


@dataclasses.dataclass(frozen=True)
class How:
    """How a model is computed, as opposed to its configuration (`cfg`) and weights (`params`).

    It is hashable, so a jitted function takes it as a static argument.

    Attributes:
      layout: how activations are sharded over devices; None is one device.
      impl: {operator: implementation}, None or {} to choose by platform and shape.
      remat: what a backward pass recomputes of each layer: None (nothing), "full" or "dots".
      dtype: type of the activations; None takes the parameters'.
      unroll: layers that one turn of the loop over a run of equal layers applies: more takes longer
        to compile, and as many as there are leaves no loop. None is 1, but see `in_training`.
        A turn of the loop over latent thoughts applies as many, but at least a whole thought's.

    Raises:
      InputError: an unknown operator, implementation, policy or type, or zero layers per turn.
    """

    layout: Layout | None = None
    impl: Mapping[str, str] | None = None
    remat: str | None = None
    dtype: Any = None
    unroll: int | None = None

    def __post_init__(self):
        if self.layout is not None and not isinstance(self.layout, Layout):
            raise InputError(f"layout must be a Layout or None, got {self.layout!r:.60}")
        if not isinstance(self.impl, Mapping | None):
            raise InputError(
                f"impl must give an implementation by operator, got {self.impl!r:.60}; known "
                f"operators: {', '.join(OPERATORS)}"
            )
        for operator, name in (self.impl or {}).items():
            check_choice("an operator in impl", operator, OPERATORS)
            check_choice(f"impl of {operator}", name, OPERATORS[operator])
        check_remat(self.remat)
        if self.unroll is not None:
            check_size("unroll", self.unroll)
        object.__setattr__(self, "impl", FrozenDict(self.impl or {}))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", _float(self.dtype))

    def implementation(self, operator: str) -> str | None:
        """The requested implementation of an operator; None if the operator is to choose."""
        return self.impl.get(operator)


# Layers that a training step on a GPU applies in a row. A loop over layers reads and writes their
# parameters, gradients and kept activations through slices of stacked arrays: without it the step
# of a model of Qwen3-0.6B's shape takes 11 % less time, and 31 s to compile in place of 7.
UNROLLED = 64


def in_training(how: How, unroll: int = UNROLLED) -> How:
    """The options for a language model's training step: on GPUs, no loop over layers.

    Unless `unroll` says otherwise. For the losses that train for long (`train.language`,
    `train.distill`, `reasoning.latent.train`): compiling takes longer.

    Args:
      how: as the user has it.
      unroll: what it becomes.
    """
    if how.unroll is None and chip() in ("gpu", "hopper"):
        return dataclasses.replace(how, unroll=unroll)
    return how


def _float(dtype: Any) -> np.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError as error:
        raise InputError(f"dtype {dtype!r:.60} is not a type of numbers") from error
    if not jnp.issubdtype(found, jnp.floating):
        raise InputError(f"activations must be of a float type, got {found}")
    return found


HOW = How()
