"""Runs: consecutive layers of equal shape, stored with a leading layers axis."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.config import check_choice

Config = TypeVar("Config")


def _dots(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Saves products without a batch dimension, and the output of cuDNN's attention."""
    if primitive.name.startswith("dot_product_attention_fwd"):
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *inputs, **parameters
    )


# What backward may keep of a layer: None keeps all, "full" only the layer's input, "dots" also the
# results of matrix products that have no batch dimension and of attention by cudnn.
REMAT = {"full": jax.checkpoint_policies.nothing_saveable, "dots": _dots}


def run_lengths(layers: Sequence[Config]) -> list[tuple[Config, int]]:
    """Maximal runs of equal configurations: [(configuration, count), ...]."""
    runs: list[tuple[Config, int]] = []
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return runs


def split(runs: Sequence[Any], *, donate: bool = False) -> list[Any]:
    """Unstacks layers: stacked trees to a list of trees without the layers axis.

    Args:
      runs: stacked trees; arrays of numpy give views.
      donate: deletes each stacked array once its layers are there, so that hardly more than one of
        them is ever held twice; not under jit.
    """
    layers: list[Any] = []
    for run in runs:
        leaves, tree = jax.tree.flatten(run)
        parts = [_rows(leaf, donate) for leaf in leaves]
        layers += [jax.tree.unflatten(tree, row) for row in zip(*parts, strict=True)]
    return layers


def _rows(leaf: Any, donate: bool) -> list[Any]:
    if not isinstance(leaf, jax.Array):
        return list(leaf)
    # An index that is an argument: one small program for all layers of a leaf.
    rows = [_row(leaf, np.int32(index)) for index in range(leaf.shape[0])]
    if donate:
        jax.block_until_ready(rows)
        leaf.delete()
    return rows


@jax.jit
def _row(leaf: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)


def join(layers: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """The inverse of `split`: stacks consecutive layers into runs of the given lengths."""
    runs, start = [], 0
    for length in lengths:
        part = layers[start : start + length]
        runs.append(jax.tree.map(lambda *x: jnp.stack(x), *part))
        start += length
    return runs


def remat(body: Callable, policy: str | None) -> Callable:
    """Wraps a layer so that the backward pass recomputes it.

    Args:
      body: the layer's function.
      policy: None, "full" or "dots".

    Raises:
      InputError: an unknown policy.
    """
    check_remat(policy)
    return body if policy is None else jax.checkpoint(body, policy=REMAT[policy])


def check_remat(policy: str | None) -> None:
    """Checks that `remat` names a known policy or is None.

    Raises:
      InputError: an unknown one.
    """
    if policy is not None:
        check_choice("the remat policy", policy, REMAT)


def scan_layers(
    body: Callable, carry: Any, params: Any, *, policy: str | None = None, unroll: int = 1
) -> tuple:
    """Applies a run layer by layer: `carry, out = body(carry, (layer params, layer index))`.

    A run of one layer is applied without a loop.

    Args:
      body: one layer.
      carry: what goes from layer to layer.
      params: the run's stacked parameters.
      policy: which remat policy backward follows.
      unroll: layers that one turn of the loop applies.

    Returns:
      The last carry, and the outputs stacked over the layers.
    """
    layers = jax.tree.leaves(params)[0].shape[0]
    body = remat(body, policy)
    if layers == 1:
        first = jax.tree.map(lambda x: x[0], params)
        carry, out = body(carry, (first, jnp.int32(0)))
        return carry, jax.tree.map(lambda x: x[None], out)
    numbers = jnp.arange(layers, dtype=jnp.int32)
    return jax.lax.scan(body, carry, (params, numbers), unroll=min(unroll, layers))
