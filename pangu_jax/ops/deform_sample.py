"""Deformable 3x3 sampling on a grid: each cell is a weighted sum of nine learned locations.

| implementation | picked when | memory beside inputs and result |
|---|---|---|
| dense | grids of up to 256 cells, on GPUs 1024 | one [cells, cells] matrix per group |
| taps | larger grids | the four corners of one tap |
| reference | never by itself: the oracle, and the loop-free form that exports | all corners |

`dense` writes the bilinear weights of all nine taps into one interpolation matrix (a product of two
hat functions, one along each axis of the grid) and multiplies: no gather forward, no scatter-add
backward, so it is fast on CPUs and deterministic on GPUs. `taps` scatters in its backward pass; on
a GPU the order of those additions, and so the last bit, may differ from run to run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import target

TAPS = 9
DENSE_CELLS = {"cpu": 256, "gpu": 1024}

EXPORT = "reference"  # loop-free; grids that `choose` gives to "dense" may export as that

# What `pangu-jax backends` shows: shapes of the values.
EXAMPLES = {
    "16 patches, 7 series": ((1, 16, 7, 16),),
    "16 patches, 321 series": ((1, 16, 321, 16),),
}


def deform_sample(
    values: jax.Array,
    offset_mask: jax.Array,
    *,
    groups: int,
    scale: float = 0.5,
    impl: str | None = None,
) -> jax.Array:
    """Sums nine bilinear samples around each cell, each times its mask.

    Tap k = 3 i + j of the cell (r, q) reads the place r + scale (j - 1 + dh_k) along the height and
    q + scale (i - 1 + dw_k) along the width; with scale 0.5 and zero offsets the taps lie half a
    cell apart. Cells outside the grid count as 0. Masks are used as they are, without a softmax.
    At whole places the derivative is the one from the right.

    Args:
      values: float [B, P, V, C], the grid; P is its height, V its width.
      offset_mask: float [B, P, V, >= 27 groups]: for each group nine pairs (dw, dh), then nine
        masks; what comes after the last group is not read.
      groups: parts of C that are sampled alike; it divides C.
      scale: cells that an offset of 1, and one tap, move by.
      impl: "reference", "taps", "dense", or None to choose by platform and shape.

    Returns:
      [B, P, V, C] in the type of `values`; places and weights are computed in float32 or wider.

    Raises:
      InputError: `groups` does not divide C, `offset_mask` is too narrow, or an unknown `impl`.

    Source: DCNv4, arXiv 2401.06197 (kernel 3, stride 1, padding 1), as TimePro uses it.
    """
    _, height, width, channels = values.shape
    if groups < 1 or channels % groups:
        raise InputError(f"{channels} channels do not split into {groups} groups")
    if offset_mask.shape[:-1] != values.shape[:-1] or offset_mask.shape[-1] < 3 * TAPS * groups:
        raise InputError(
            f"offset_mask has shape {offset_mask.shape}, expected {values.shape[:-1]} with at "
            f"least {3 * TAPS * groups} numbers for {groups} groups"
        )
    name = choose(target(), values.shape) if impl is None else impl
    check_choice("impl of deform_sample", name, IMPLEMENTATIONS)
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    rows, columns, masks = _places(offset_mask.astype(dtype), groups, scale)
    table = rearrange(values.astype(dtype), "b p v (g c) -> b g (p v) c", g=groups)
    out = IMPLEMENTATIONS[name](table, rows, columns, masks, (height, width))
    return rearrange(out, "b g (p v) c -> b p v (g c)", p=height).astype(values.dtype)


def choose(platform: str, shape: tuple[int, ...]) -> str:
    """The implementation that `impl=None` picks for values of this shape."""
    return "dense" if shape[1] * shape[2] <= DENSE_CELLS.get(platform, 256) else "taps"


def _places(offset_mask, groups, scale):
    """Rows, columns and masks of all samples, each [B, G, 9, cells]."""
    _, height, width, _ = offset_mask.shape
    x = offset_mask[..., : 3 * TAPS * groups]
    x = rearrange(x, "b p v (g m) -> b g m (p v)", g=groups)
    moves, masks = jnp.split(x, [2 * TAPS], axis=2)
    moves = rearrange(moves, "b g (k pair) n -> b g k pair n", pair=2)
    across, along = (m[:, :, :, 0] for m in jnp.split(moves, 2, axis=3))
    tap, cell = np.arange(TAPS)[:, None], np.arange(height * width)
    rows = cell // width - scale + scale * (tap % 3)
    columns = cell % width - scale + scale * (tap // 3)
    rows = jnp.asarray(rows, x.dtype) + scale * along
    columns = jnp.asarray(columns, x.dtype) + scale * across
    # Outside the weights are 0 anyway; exactly on the border this makes the derivative 0 too.
    inside = (rows > -1) & (columns > -1) & (rows < height) & (columns < width)
    return rows, columns, jnp.where(inside, masks, 0)


def _reference(table, rows, columns, masks, grid):
    """All taps at once; table [B, G, cells, c], the rest [B, G, 9, cells]."""
    flat = (rearrange(x, "b g k n -> b g (k n)") for x in (rows, columns, masks))
    read = _tap(table, *flat, grid)
    return rearrange(read, "b g (k n) c -> b g k n c", k=TAPS).sum(2)


def _tap(table, rows, columns, masks, grid):
    """Samples by gathering their four corners; rows, columns, masks [B, G, n] to [B, G, n, c]."""
    height, width = grid
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top, columns - left
    out = jnp.zeros((*rows.shape, table.shape[-1]), table.dtype)
    for y, by_row in ((top, 1 - down), (top + 1, down)):
        for x, by_column in ((left, 1 - right), (left + 1, right)):
            there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            at = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
            corner = jnp.take_along_axis(table, at.astype(jnp.int32)[..., None], axis=2)
            out += corner * jnp.where(there, by_row * by_column * masks, 0)[..., None]
    return out


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _taps(table, rows, columns, masks, grid):
    """One tap after the other, so that only one tap's corners are in memory at a time."""

    def add(out, tap):
        return out + _tap(table, *tap, grid), None

    return jax.lax.scan(add, jnp.zeros_like(table), _by_tap(rows, columns, masks))[0]


def _taps_forward(table, rows, columns, masks, grid):
    return _taps(table, rows, columns, masks, grid), (table, rows, columns, masks)


def _taps_backward(grid, kept, grad):
    table, *samples = kept

    def add(total, tap):
        _, pull = jax.vjp(lambda table, *tap: _tap(table, *tap, grid), table, *tap)
        part, *rest = pull(grad)
        return total + part, tuple(rest)

    total, rest = jax.lax.scan(add, jnp.zeros_like(table), _by_tap(*samples))
    return total, *(rearrange(x, "k b g n -> b g k n") for x in rest)


_taps.defvjp(_taps_forward, _taps_backward)


def _by_tap(*samples):
    return tuple(rearrange(x, "b g k n -> k b g n") for x in samples)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _dense(table, rows, columns, masks, grid):
    """A product with the matrix of all bilinear weights."""
    return jnp.einsum("bgio,bgic->bgoc", _weights(rows, columns, masks, grid), table)


def _dense_forward(table, rows, columns, masks, grid):
    weights = _weights(rows, columns, masks, grid)
    out = jnp.einsum("bgio,bgic->bgoc", weights, table)
    return out, (table, rows, columns, masks, weights)


def _dense_backward(grid, kept, grad):
    table, rows, columns, masks, weights = kept
    height, width = grid
    d_table = jnp.einsum("bgio,bgoc->bgic", weights, grad)
    # d_weights[p, q, o]: how the loss would change if the cell o read more of the cell (p, q).
    d_weights = jnp.einsum("bgic,bgoc->bgio", table, grad)
    d_weights = rearrange(d_weights, "b g (p q) o -> b g p q o", p=height)
    by_row, by_column = _hat(rows, height), _hat(columns, width)
    # Sums over the columns written out, as the compiler vectorizes along the cells.
    along = sum(
        by_column[:, :, :, q, None] * d_weights[:, :, None, :, q] for q in range(width)
    )  # [B, G, 9, P, cells]
    slope = _hat_slope(columns, width)
    across = sum(slope[:, :, :, q, None] * d_weights[:, :, None, :, q] for q in range(width))
    row_slope = _hat_slope(rows, height)
    d_masks = sum(by_row[:, :, :, p] * along[:, :, :, p] for p in range(height))
    d_rows = masks * sum(row_slope[:, :, :, p] * along[:, :, :, p] for p in range(height))
    d_columns = masks * sum(by_row[:, :, :, p] * across[:, :, :, p] for p in range(height))
    return d_table, d_rows, d_columns, d_masks


_dense.defvjp(_dense_forward, _dense_backward)


def _weights(rows, columns, masks, grid):
    """Weight of cell i in cell o's sum: [B, G, cells i, cells o]."""
    by_row = _hat(rows, grid[0])
    by_column = _hat(columns, grid[1]) * masks[..., None, :]
    weights = sum(by_row[:, :, k, :, None] * by_column[:, :, k, None] for k in range(TAPS))
    return rearrange(weights, "b g p q o -> b g (p q) o")


def _hat(places, size):
    """Linear interpolation weights: [B, G, 9, cells] to [B, G, 9, size, cells]."""
    index = jnp.arange(size, dtype=places.dtype)[:, None]
    return jnp.maximum(0, 1 - jnp.abs(places[..., None, :] - index))


def _hat_slope(places, size):
    """Derivatives of `_hat` with respect to the location, from the right."""
    index = jnp.arange(size, dtype=places.dtype)[:, None]
    low = jnp.floor(places)[..., None, :]
    return (index == low + 1).astype(places.dtype) - (index == low).astype(places.dtype)


IMPLEMENTATIONS = {"reference": _reference, "taps": _taps, "dense": _dense}
