"""Routing: the top experts within each group, weighted by one global softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import chip
from pangu_jax.ops.split_matmul import split_matmul


def group_topk(
    scores: jax.Array, k: int, *, vote_keep: int | None = None, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The top k of every group; ties go to the lowest index.

    Args:
      scores: float [..., G, E/G].
      k: how many of each group.
      vote_keep: lossy, off by default: chooses only among the `vote_keep` experts of a group
        that most tokens of the batch put first. Fewer experts are read, but a token's experts then
        depend on the other tokens of its batch: rows are no longer independent and speculative
        decoding no longer exact. E/G changes nothing.
      mask: bool [...], false for padding, which does not vote; None for none.

    Returns:
      Their scores [..., G, k], best first, and their int32 indices [..., G, k] inside the group.
      Gradients flow through the scores alone.

    Raises:
      InputError: k or `vote_keep` that a group can't give.

    Source: arXiv 2505.21411, equations 6-7; `vote_keep` is that of the Ascend 310P serving code.
    """
    size = scores.shape[-1]
    if not 1 <= k <= size:
        raise InputError(f"k is {k}; a group has {size} experts, so it must be 1 to {size}")
    if vote_keep is not None:
        if not k <= vote_keep <= size:
            raise InputError(f"vote_keep is {vote_keep}; it must be {k} (k) to {size} (a group)")
        scores = jnp.where(_voted(scores, vote_keep, mask), scores, -jnp.inf)
    return _best(k, scores)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _best(k, scores):
    return tuple(jax.lax.top_k(scores, k))  # a list in some versions of jax


@_best.defjvp
def _best_tangent(k, primals, tangents):
    # By a masked sum, whose transpose is one, too; that of a look-up scatters.
    best, ids = _best(k, *primals)
    chosen = ids[..., None] == jnp.arange(primals[0].shape[-1], dtype=ids.dtype)
    slope = jnp.where(chosen, tangents[0][..., None, :], 0).sum(-1)
    return (best, ids), (slope, np.zeros(ids.shape, jax.dtypes.float0))


def router_weights(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array | None,
    *,
    k: int,
    renormalize: bool = False,
    vote_keep: int | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The experts each token is routed to, and their weights.

    The softmax runs over all experts, not inside a group; experts are chosen by the unscaled
    probabilities; the learned scale multiplies the weights afterward. Unless `renormalize` is
    set the weights of a token do not sum to 1.

    Args:
      x: [T, D], any float type.
      kernel: [D, G, E/G].
      scale: [G, E/G], the factor after selection, or None.
      k: experts chosen in each group; with one group this is ordinary top-k routing.
      renormalize: divides the chosen probabilities by their sum (Qwen3-MoE's norm_topk_prob).
      vote_keep: as in `group_topk`: lossy, dependent on the batch, None by default.
      mask: bool [T], the tokens that vote; only for `vote_keep`.

    Returns:
      Weights float32 [T, G, k]; int32 indices inside the group [T, G, k]; and the global softmax
      float32 [T, G, E/G].

    Source: arXiv 2505.21411, equations 5-7; the scale is that of the released model's code.
    """
    probs = jax.nn.softmax(_logits(x, kernel.astype(jnp.float32)), axis=(1, 2))
    weights, ids = group_topk(probs, k, vote_keep=vote_keep, mask=mask)
    if renormalize:
        weights = weights / weights.sum((1, 2), keepdims=True)
    if scale is not None:
        weights = weights * _pick(scale.astype(jnp.float32), ids)
    return weights, ids, probs


def _logits(x, kernel):
    """Router logits in full precision: [T, G, E/G]."""
    if x.dtype == jnp.bfloat16 and chip() in ("gpu", "hopper"):  # which multiply float32 slowly
        flat = split_matmul(x, rearrange(kernel, "d g e -> d (g e)"))
        return rearrange(flat, "t (g e) -> t g e", g=kernel.shape[1])
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("td,dge->tge", x.astype(jnp.float32), kernel, precision=precision)


def _voted(scores, keep, mask):
    """Bool [G, E/G]: the `keep` experts of each group most often ranked first; ties go lowest."""
    size = scores.shape[-1]
    votes = jax.nn.one_hot(jnp.argmax(scores, -1), size, dtype=jnp.float32)
    if mask is not None:
        votes = votes * mask[..., None, None]
    _, kept = jax.lax.top_k(votes.reshape(-1, *scores.shape[-2:]).sum(0), keep)
    return jax.nn.one_hot(kept, size, dtype=bool).any(-2)


def _pick(scale: jax.Array, ids: jax.Array) -> jax.Array:
    """scale[g, ids[t, g, k]] as [T, G, k], by a one-hot sum, which shards and exports well."""
    return jnp.einsum("tgke,ge->tgk", jax.nn.one_hot(ids, scale.shape[-1]), scale)
