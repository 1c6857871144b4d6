"""TimePro: multivariate forecasting with a selective scan over the variates.

- each window is normalized by its own mean and standard deviation, and put back at the end;
- a series is cut into patches; all patches of a series together are its token;
- tokens are mixed by two scans over the series, one in either order, whose states are read anew at
  learned places of the grid (patch of time, series), and by a feed-forward layer;
- one linear map turns a token into the whole forecast of its series.

Letters: B batch, T look-back, H horizon, V variates (series), P patches, C channels of a patch,
D = P C width of a token.

Source: arXiv 2505.20774 and its released code, which this follows where they differ: no norm before
the mixers, no position embedding, offsets along the series as well as along time, masks without a
softmax. The parameters that the released code makes and never uses are not here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.core.errors import InputError
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear, uniform_linear_spec
from pangu_jax.nn.norm import layer_norm, layer_norm_spec
from pangu_jax.nn.patch import patches
from pangu_jax.nn.ssm import mixer, mixer_spec
from pangu_jax.sharding.layout import constrain

EPS = 1e-5


def spec(cfg: TimeProConfig) -> dict[str, Any]:
    """The parameters: {"embed", "blocks": [one tree per layer], "norm", "head"}.

    Layers are kept apart, not stacked: there are at most a few, and they are not scanned over.
    """
    width = cfg.width
    block = {
        "forward": mixer_spec(cfg.mixer),
        "backward": mixer_spec(cfg.mixer),
        "norm": layer_norm_spec(width),
        "up": uniform_linear_spec(width, 4 * width, ("embed", "mlp")),
        "down": uniform_linear_spec(4 * width, width, ("mlp", "embed")),
    }
    return {
        "embed": uniform_linear_spec(cfg.patch, cfg.channels, (None, None), bias=False),
        "blocks": [block for _ in range(cfg.layers)],
        "norm": layer_norm_spec(width),
        "head": uniform_linear_spec(width, cfg.horizon, ("embed", None)),
    }


def apply(
    params: dict[str, Any],
    x: jax.Array,
    *,
    cfg: TimeProConfig,
    key: jax.Array | None = None,
    how: How = HOW,
) -> jax.Array:
    """Forecasts.

    Args:
      params: made by `spec`.
      x: float [B, T, V], the look-back windows.
      cfg: the model.
      key: for dropout while training; None leaves it out.
      how: layout and implementations.

    Returns:
      [B, H, V] in the units of `x`.

    Raises:
      InputError: windows of another length than the look-back.
    """
    if x.ndim != 3 or x.shape[1] != cfg.look_back:
        raise InputError(f"x has shape {x.shape}, expected [B, {cfg.look_back}, V]")
    x, mean, std = normalize(x) if cfg.normalize else (x, 0, 1)
    tokens = embed(params["embed"], x, cfg=cfg, key=key)
    for block_params in params["blocks"]:
        tokens = block(block_params, tokens, cfg=cfg, how=how)
    return head(params, tokens) * std + mean


def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Windows of mean 0 and variance 1, and the mean and std [B, 1, V] that undo it."""
    mean = jax.lax.stop_gradient(x.mean(1, keepdims=True))
    x = x - mean
    std = jnp.sqrt(jnp.var(x, axis=1, keepdims=True) + EPS)
    return x / std, mean, std


def embed(
    params: dict[str, Any], x: jax.Array, *, cfg: TimeProConfig, key: jax.Array | None = None
) -> jax.Array:
    """Windows [B, T, V] as tokens [B, V, D], the patches one after the other."""
    e = linear(params, patches(rearrange(x, "b t v -> b v t"), size=cfg.patch, stride=cfg.stride))
    if key is not None and cfg.dropout:
        kept = jax.random.bernoulli(key, 1 - cfg.dropout, e.shape)
        e = jnp.where(kept, e / (1 - cfg.dropout), 0)
    return rearrange(e, "b v p c -> b v (p c)")


def block(
    params: dict[str, Any],
    tokens: jax.Array,
    *,
    cfg: TimeProConfig,
    how: How = HOW,
) -> jax.Array:
    """One layer: both mixers, then the feed-forward layer; [B, V, D] to [B, V, D]."""
    both = mixer(params["forward"], tokens, cfg=cfg.mixer, eps=EPS, how=how)
    flipped = jnp.flip(tokens, 1)
    back = mixer(params["backward"], flipped, cfg=cfg.mixer, eps=EPS, how=how)
    tokens = tokens + both + jnp.flip(back, 1)
    hidden = linear(params["up"], layer_norm(params["norm"], tokens, eps=EPS))
    hidden = constrain(hidden, ("batch", None, "mlp"), how.layout)
    return tokens + linear(params["down"], jax.nn.gelu(hidden, approximate=False))


def head(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Tokens [B, V, D] as normalized forecasts [B, H, V]."""
    steps = linear(params["head"], layer_norm(params["norm"], tokens, eps=EPS))
    return rearrange(steps, "b v h -> b h v")
