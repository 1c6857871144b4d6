"""Mixture of grouped experts: every token uses the same number of experts from every group."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import parse_shape, rearrange
from flax import struct
from jax.sharding import PartitionSpec

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Constant, Normal, Spec
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.mlp import MlpConfig, mlp, mlp_spec
from pangu_jax.ops.expert_mlp import expert_mlp
from pangu_jax.ops.routing import router_weights
from pangu_jax.sharding.expert import exchange, expert_split
from pangu_jax.sharding.layout import constrain

# The axes of the experts' kernels.
_AXES = {
    "gate": ("group", "expert", "embed", "expert_mlp"),
    "up": ("group", "expert", "embed", "expert_mlp"),
    "down": ("group", "expert", "expert_mlp", "embed"),
}


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """One layer of routed experts.

    Attributes:
      experts: E, all routed experts of the layer.
      groups: G; group g holds the experts g * E/G to (g+1) * E/G - 1. One group is ordinary top-k.
      top_k: experts chosen in each group; a token uses groups * top_k of them.
      width: hidden width of an expert.
      shared_width: hidden width of the always-active shared expert; 0 for none.
      router_scale: whether a learned factor per expert multiplies the weight after selection.
      renormalize: whether the chosen probabilities are divided by their sum (Qwen3-MoE).
    """

    experts: int
    groups: int
    top_k: int
    width: int
    shared_width: int = 0
    router_scale: bool = False
    renormalize: bool = False

    def __post_init__(self):
        for name in ("experts", "groups", "top_k", "width"):
            check_size(f"moe {name}", getattr(self, name))
        if self.experts % self.groups:
            raise InputError(f"moe groups {self.groups} must divide the {self.experts} experts")
        if self.top_k > self.experts // self.groups:
            raise InputError(
                f"moe top_k {self.top_k} exceeds the {self.experts // self.groups} "
                "experts per group"
            )
        check_size("moe shared_width", self.shared_width, least=0)


@struct.dataclass
class RouterStats:
    """Router statistics over the unmasked tokens of one batch; leaves may be stacked over layers.

    Attributes:
      load: float32 [G, E/G], how many (token, expert) pairs each expert got.
      prob_sum: float32 [G, E/G], sum over tokens of the global softmax.
      tokens: float32 scalar, number of tokens.
      ids: int32 [B, T, G, k], the chosen experts, numbered over all groups; padding included.
    """

    load: jax.Array
    prob_sum: jax.Array
    tokens: jax.Array
    ids: jax.Array


def moe_spec(embed: int, cfg: MoEConfig, *, gain: float = 1.0) -> dict[str, Any]:
    """Spec of a routed layer for model width `embed`; `gain` scales the down projections.

    The scale after selection starts at E / (G k), so that a uniform router's weights sum to 1.
    That start is ours: the paper does not give one.
    """
    groups, size = cfg.groups, cfg.experts // cfg.groups
    router = {"kernel": Spec((embed, groups, size), ("embed", "group", "expert"), Normal(0.02))}
    if cfg.router_scale:
        start = Constant(cfg.experts / (groups * cfg.top_k))
        router["scale"] = Spec((groups, size), ("group", "expert"), start)
    into = Spec((groups, size, embed, cfg.width), _AXES["gate"], Normal(embed**-0.5))
    down = Spec((groups, size, cfg.width, embed), _AXES["down"], Normal(gain * cfg.width**-0.5))
    experts = {"gate": {"kernel": into}, "up": {"kernel": into}, "down": {"kernel": down}}
    spec: dict[str, Any] = {"router": router, "experts": experts}
    if cfg.shared_width:
        spec["shared"] = mlp_spec(embed, MlpConfig(cfg.shared_width), gain=gain)
    return spec


def moe(
    params: dict[str, Any],
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    cfg: MoEConfig,
    how: How = HOW,
) -> tuple[jax.Array, RouterStats]:
    """Routed experts plus the shared expert for every token; no token is dropped.

    Args:
      params: tree of `moe_spec`.
      x: [B, T, D].
      mask: bool [B, T], false for padding, which the statistics leave out; None for no padding.
      cfg: routing; sizes are read from the arrays.
      how: its layout, and the implementation of "expert_mlp".

    Returns:
      [B, T, D] in the type of `x`, and the router's statistics.

    Source: arXiv 2505.21411, equations 5-7; the scale after selection is of the released model.
    """
    router, experts = params["router"], params["experts"]
    kernels = {name: experts[name]["kernel"].astype(x.dtype) for name in ("gate", "up", "down")}
    run = partial(_routed, cfg=cfg, impl=how.implementation("expert_mlp"))
    if how.layout is None or how.layout.mesh.size == 1:
        y, stats = run(router, kernels, x, mask)
    else:
        # Each device routes and sorts its own tokens. Left to itself the compiler would gather the
        # tokens of all devices to sort them.
        specs = {name: Spec(kernels[name].shape, _AXES[name]) for name in kernels}
        split = expert_split(x.shape[0], specs, how.layout)
        tokens, whole = PartitionSpec(split.tokens or None), PartitionSpec()
        y, stats = jax.shard_map(
            partial(run, split=split),
            mesh=how.layout.mesh,
            in_specs=(whole, split.kernels, tokens, tokens),
            out_specs=(tokens, RouterStats(load=whole, prob_sum=whole, tokens=whole, ids=tokens)),
            check_vma=False,  # kernels of other libraries do not say what their results vary over
        )(router, kernels, x, mask)
    y = constrain(y, ("batch", "length", "embed"), how.layout)
    if "shared" in params:
        y = y + mlp(params["shared"], x, cfg=MlpConfig(cfg.shared_width), how=how)
    return y, stats


def _routed(router, kernels, x, mask, *, cfg, impl, split=None):
    """Routed experts for the given tokens; inside `shard_map`, one device's."""
    tokens = rearrange(x, "b t d -> (b t) d")
    weights, ids, probs = router_weights(
        tokens, router["kernel"], router.get("scale"), k=cfg.top_k, renormalize=cfg.renormalize
    )
    experts = partial(expert_mlp, impl=impl)
    if split is None:
        y = experts(tokens, ids, weights, **kernels)
    else:
        y = exchange(experts, tokens, ids, weights, kernels, split)
    stats = router_stats(ids, probs, mask, parse_shape(x, "b t _"))
    if split is not None and split.tokens:
        load, prob_sum, number = jax.lax.psum(
            (stats.load, stats.prob_sum, stats.tokens), split.tokens
        )
        stats = stats.replace(load=load, prob_sum=prob_sum, tokens=number)
    return rearrange(y, "(b t) d -> b t d", **parse_shape(x, "b t _")), stats


def router_stats(
    ids: jax.Array, probs: jax.Array, mask: jax.Array | None, shape: dict[str, int]
) -> RouterStats:
    """Statistics of a router's choices.

    Args:
      ids: int32 [B*T, G, k], inside the group.
      probs: float32 [B*T, G, E/G], the global softmax.
      mask: bool [B, T], false for padding; None for none.
      shape: {"b": B, "t": T}.
    """
    _, groups, size = probs.shape
    keep = jnp.ones(ids.shape[0], bool) if mask is None else rearrange(mask, "b t -> (b t)")
    keep = keep.astype(jnp.float32)
    chosen = jax.nn.one_hot(ids, size, dtype=jnp.float32).sum(2)  # [B*T, G, E/G]
    first = jnp.arange(groups, dtype=ids.dtype)[:, None] * size
    return RouterStats(
        load=jax.lax.stop_gradient(jnp.einsum("tge,t->ge", chosen, keep)),
        prob_sum=jnp.einsum("tge,t->ge", probs, keep),
        tokens=keep.sum(),
        ids=rearrange(ids + first, "(b t) g k -> b t g k", **shape),
    )
