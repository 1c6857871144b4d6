"""Linear maps between structured axes."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.spec import Normal, Spec, Uniform, zeros

Axes = tuple[str | None, ...]


def linear_spec(
    inputs: tuple[int, ...],
    input_axes: Axes,
    outputs: tuple[int, ...],
    output_axes: Axes,
    *,
    bias: bool = False,
    gain: float = 1.0,
) -> dict[str, Spec]:
    """Spec of a linear map from `inputs` to `outputs` dimensions.

    The kernel is drawn with standard deviation gain / sqrt(product of inputs); biases start at 0.
    """
    std = gain * math.prod(inputs) ** -0.5
    spec = {"kernel": Spec(inputs + outputs, input_axes + output_axes, Normal(std))}
    if bias:
        spec["bias"] = Spec(outputs, output_axes, zeros)
    return spec


def uniform_linear_spec(
    inputs: int, outputs: int, axes: Axes, *, bias: bool = True
) -> dict[str, Spec]:
    """Spec of a linear map with kernel and bias uniform within 1 / sqrt(inputs).

    That is how torch's Linear starts; models whose published results depend on it use this.

    Args:
      inputs: width of what goes in.
      outputs: width of what comes out.
      axes: the names of both.
      bias: whether there is one.
    """
    draw = Uniform(inputs**-0.5)
    spec = {"kernel": Spec((inputs, outputs), axes, draw)}
    if bias:
        spec["bias"] = Spec((outputs,), axes[1:], draw)
    return spec


def linear(params: dict[str, Any], x: jax.Array, *, inputs: int = 1) -> jax.Array:
    """Contracts the last `inputs` dimensions of `x` with the kernel's first ones.

    Args:
      params: {"kernel": [*inputs, *outputs], "bias": [*outputs] or absent}.
      x: [..., *inputs]; the result has its type.
      inputs: how many dimensions are contracted.

    Returns:
      [..., *outputs].
    """
    y = jnp.tensordot(x, params["kernel"].astype(x.dtype), axes=inputs)
    return y + params["bias"].astype(x.dtype) if "bias" in params else y
