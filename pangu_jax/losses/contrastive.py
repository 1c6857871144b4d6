"""The contrastive loss (InfoNCE) over a whole batch, with in-batch negatives."""

import jax
import jax.numpy as jnp
from einops import rearrange

from pangu_jax.sharding.layout import Layout, constrain


def info_nce(
    queries: jax.Array,
    documents: jax.Array,
    negatives: jax.Array | None = None,
    weights: jax.Array | None = None,
    *,
    temperature: float = 0.05,
    symmetric: bool = False,
    layout: Layout | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropy of retrieving each query's own document among the whole batch's documents.

    Vectors are taken as they are: a caller who wants cosine similarity normalizes them first.
    Under a layout the batch is split over the devices, and each still compares its queries with the
    documents of all.

    Args:
      queries: [B, D], of any float type; the arithmetic is float32.
      documents: [B, D]; row i answers query i, the others do not.
      negatives: [B, n, D], n hard ones of each query: documents that answer no query of the
        batch, and that every query meets; None for none.
      weights: float [B], 0 for rows that are padding: they are no queries, and their
        documents and negatives are not met.
      temperature: what similarities are divided by, above 0.
      symmetric: whether documents look for their queries, too; both halves count the same.
      layout: where arrays live; None is one device.

    Returns:
      Sum over queries in nats, sum of weights, and how many queries (by weight) have their own
      document nearest; float32 scalars.

    Source: "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748,
      equation 4; negatives within the batch as in "Dense Passage Retrieval", arXiv 2004.04906,
      section 3.2; the symmetric form as in CLIP, arXiv 2103.00020, figure 3.
    """
    batch = queries.shape[0]
    weights = jnp.ones(batch, jnp.float32) if weights is None else weights.astype(jnp.float32)
    queries, documents = queries.astype(jnp.float32), documents.astype(jnp.float32)
    queries = constrain(queries, ("batch", None), layout)
    there = weights > 0
    offered, known = documents, there
    if negatives is not None:
        hard = rearrange(negatives.astype(jnp.float32), "b n d -> (b n) d")
        offered = jnp.concatenate([documents, hard])
        known = jnp.concatenate([there, jnp.repeat(there, negatives.shape[1])])
    offered = constrain(offered, (None, None), layout)  # every device needs all of them
    scores = _similarity(queries, offered, temperature)
    scores = jnp.where(known, scores, -jnp.inf)
    nats, right = _own(scores, weights)
    if symmetric:
        back = _similarity(constrain(documents, ("batch", None), layout), queries, temperature)
        nats = (nats + _own(jnp.where(there, back, -jnp.inf), weights)[0]) / 2
    return nats, weights.sum(), right


def _similarity(rows: jax.Array, columns: jax.Array, temperature: float) -> jax.Array:
    product = jnp.einsum("bd,nd->bn", rows, columns, precision=jax.lax.Precision.HIGHEST)
    return product / temperature


def _own(scores: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted nats of the diagonal, and the weight of rows whose diagonal is the maximum."""
    there = weights > 0
    # Padding's own column is masked away; its rows get finite scores, as 0 x infinity is none.
    scores = jnp.where(there[:, None], scores, 0.0)
    own = jnp.diagonal(scores)
    nats = jnp.where(there, jax.nn.logsumexp(scores, 1) - own, 0.0)
    return (weights * nats).sum(), (weights * (own >= scores.max(1))).sum()
