"""TimePro's mixer: a scan over variates, with states resampled over time and variates.

Letters here: B batch, V variates, P patches of time, C channels of a patch, D = P C the width of a
variate's token, R the rank of the step size.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.spec import Spec, Uniform, ones, zeros
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear, uniform_linear_spec
from pangu_jax.nn.mixer_config import MixerConfig
from pangu_jax.nn.norm import layer_norm, layer_norm_spec
from pangu_jax.ops.deform_sample import deform_sample
from pangu_jax.ops.selective_scan import selective_states


def step_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Values whose softplus is spread log-uniformly from 0.001 to 0.1."""
    draws = jax.random.uniform(key, shape, jnp.float32, math.log(1e-3), math.log(1e-1))
    step = jnp.maximum(jnp.exp(draws), 1e-4)
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def mixer_spec(cfg: MixerConfig) -> dict[str, Any]:
    """Spec of one mixer; the offset and mask layer starts at 0, so states have no effect yet."""
    width, rank, c = cfg.width, cfg.rank, cfg.channels
    spec: dict[str, Any] = {
        "in": uniform_linear_spec(width, 2 * width, ("embed", "mlp"), bias=False),
        "skip": Spec((width,), ("embed",), ones),
        "norm": layer_norm_spec(width),
    }
    if not cfg.state:
        return spec
    numbers = -(-27 * cfg.groups // 8) * 8  # a multiple of 8, as the released kernel wants it
    xavier = Uniform(math.sqrt(3 / c))
    return spec | {
        "select": uniform_linear_spec(width, rank + 2, ("embed", None), bias=False),
        "step": {
            "kernel": Spec((rank, width), (None, "embed"), Uniform(rank**-0.5)),
            "bias": Spec((width,), ("embed",), step_bias),
        },
        "rate_log": Spec((width, 1), ("embed", "state"), zeros),
        "value": {
            "kernel": Spec((c, c), (None, None), xavier),
            "bias": Spec((c,), (None,), zeros),
        },
        "offset_mask": {
            "kernel": Spec((c, numbers), (None, None), zeros),
            "bias": Spec((numbers,), (None,), zeros),
        },
        "out": {"kernel": Spec((c, c), (None, None), xavier)},
    }


def mixer(
    params: dict[str, Any],
    x: jax.Array,
    *,
    cfg: MixerConfig,
    eps: float,
    how: How = HOW,
) -> jax.Array:
    """Mixes each variate with those before it by a gated selective scan.

    Args:
      params: made by `mixer_spec`.
      x: [B, V, D], the tokens, not normalized.
      cfg: sizes.
      eps: of the LayerNorm.
      how: the implementations of "selective_states" and "deform_sample".

    Returns:
      [B, V, D].

    Source: arXiv 2505.20774, section 3, as its released code computes it: no projection after the
    gate, and one state per channel, which leaves the scan whole.
    """
    u, gate = jnp.split(linear(params["in"], x), 2, axis=-1)
    y = u * params["skip"].astype(x.dtype)
    if cfg.state:
        select = linear(params["select"], u)
        # Split, not sliced: the gradient of slices is a sum of padded arrays.
        low, enters, reads = jnp.split(select, [cfg.rank, cfg.rank + 1], axis=-1)
        step = low @ params["step"]["kernel"].astype(x.dtype)
        h = _states(params, u, step, enters, how)
        y = y + _sampled(params, h, cfg, how).astype(x.dtype) * reads
    return layer_norm(params["norm"], y, eps=eps) * jax.nn.silu(gate)


def _states(params, u, step, enters, how):
    """The state after each variate: [B, V, D]."""
    rate = -jnp.exp(params["rate_log"])
    name = how.implementation("selective_states")
    bias = params["step"]["bias"]
    return selective_states(u, step, rate, enters, dt_bias=bias, impl=name)[..., 0]


def _sampled(params, h, cfg, how):
    """The states, resampled at learned locations of the grid of patches and variates."""
    grid = rearrange(h, "b v (p c) -> b p v c", p=cfg.patches)
    read = deform_sample(
        linear(params["value"], grid),
        _offset_mask(params["offset_mask"], grid),
        groups=cfg.groups,
        impl=how.implementation("deform_sample"),
    )
    return rearrange(linear(params["out"], read), "b p v c -> b v (p c)")


def _offset_mask(params, grid):
    """`linear`, formed with the cells last, as the sampling reads a number of all cells at once."""
    found = jnp.einsum("cn,bpvc->nbpv", params["kernel"].astype(grid.dtype), grid)
    found = found + params["bias"].astype(grid.dtype)[:, None, None, None]
    return rearrange(found, "n b p v -> b p v n")
