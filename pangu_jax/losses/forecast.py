"""Forecast errors over windows of one series matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def windows(
    series: jax.Array, starts: jax.Array, *, look_back: int, horizon: int
) -> tuple[jax.Array, jax.Array]:
    """The input and target of each window.

    Args:
      series: [rows, V].
      starts: int [B], the first rows of the windows.
      look_back: T, input steps.
      horizon: H, steps to forecast.

    Returns:
      [B, T, V] and [B, H, V].
    """
    rows = starts[:, None] + jnp.arange(look_back + horizon)
    both = jnp.take(series, rows, axis=0)
    return both[:, :look_back], both[:, look_back:]


def squared_error(forecast: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error over everything, a float32 scalar."""
    return jnp.mean(jnp.square(forecast - target))


def window_errors(
    forecast: Callable[[jax.Array], jax.Array],
    series: jax.Array,
    starts: jax.Array,
    *,
    look_back: int,
    horizon: int,
    batch: int,
) -> tuple[jax.Array, jax.Array]:
    """Squared and absolute error per window, averaged over its steps and variates.

    Windows are taken `batch` at a time; none is dropped, whatever the batch.

    Args:
      forecast: [B, T, V] to [B, H, V].
      series: [rows, V].
      starts: int [n], the first rows of the windows.
      look_back: T.
      horizon: H.
      batch: windows that are forecast at once.

    Returns:
      Two arrays [n].
    """
    count = starts.shape[0]
    pieces = -(-count // batch)
    # The last piece is filled up with windows whose errors are cut off again.
    filled = jnp.pad(starts, (0, pieces * batch - count), mode="edge").reshape(pieces, batch)

    def piece(at):
        seen, wanted = windows(series, at, look_back=look_back, horizon=horizon)
        difference = forecast(seen) - wanted
        return jnp.square(difference).mean((1, 2)), jnp.abs(difference).mean((1, 2))

    squared, absolute = jax.lax.map(piece, filled)
    return squared.reshape(-1)[:count], absolute.reshape(-1)[:count]
