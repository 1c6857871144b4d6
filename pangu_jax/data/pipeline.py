"""Batches in a deterministic shuffled order that can be entered at any step."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError


def batches(
    source: Any,
    *,
    batch: int,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a Source, each array stacked to [batch / process_count, ...].

    The order is a function of the seed alone: batch number i is the same whether the stream was
    entered at step 0 or i, so a run resumes exactly by its step number. Every epoch is shuffled
    anew; windows flow over from one epoch into the next, and only the last batch of all may be
    dropped for being short. Rows are read ahead in threads, which end with the iterator.

    Args:
      source: `__len__` and `__getitem__(i) -> {name: array}`.
      batch: rows over all processes.
      seed: of the shuffling.
      shuffle: False keeps the source's order.
      epochs: passes over the source; None never ends.
      start_step: the first batch to give.
      process_index: index of this process.
      process_count: number of processes that share a batch; row r goes to r % process_count.

    Raises:
      InputError: an empty source, numbers out of range, `batch` not a multiple of `process_count`,
        or more than there is.
    """
    import grain  # here, as `drawn_batches` does without it

    check_batches(len(source), batch, seed, epochs, start_step, process_index, process_count)
    rows = grain.MapDataset.source(source).seed(seed)
    rows = rows.shuffle() if shuffle else rows
    rows = rows.repeat(epochs)[process_index::process_count]
    local = batch // process_count
    # Threads, not processes, so that it starts at once and ends with the run; more than two would
    # only wait for one another, as a row is a few small numpy calls.
    rows = rows[start_step * local :].to_iter_dataset(grain.ReadOptions(num_threads=2))
    return iter(rows.batch(local, drop_remainder=True))


def drawn_batches(
    source: Any, *, batch: int, seed: int = 0, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of rows drawn with replacement, each array stacked to [batch, ...].

    Batch number i is a function of the seed and i alone, as with `batches`. For machines without
    grain: rows are not read ahead, and no epoch sees every row.

    Args:
      source: `__len__` and `__getitem__(i) -> {name: array}`.
      batch: rows.
      seed: of the draws.
      start_step: the first batch to give.

    Raises:
      InputError: an empty source, or numbers out of range.
    """
    check_batches(len(source), batch, seed, start_step=start_step)
    return _drawn(source, batch, seed, start_step)


def _drawn(source: Any, batch: int, seed: int, step: int) -> Iterator[dict[str, np.ndarray]]:
    while True:
        rng = np.random.default_rng((seed, step))
        rows = [source[int(i)] for i in rng.integers(0, len(source), batch)]
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        step += 1


def check_batches(
    windows: int,
    batch: int,
    seed: int = 0,
    epochs: int | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """Raises InputError for arguments that `batches` does not accept; see there."""
    if not windows:
        raise InputError("there are no windows to make batches of")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise InputError(f"process {process_index} of {process_count} does not exist")
    if batch < 1 or batch % process_count:
        raise InputError(f"batch {batch} must be a positive multiple of {process_count} processes")
    if seed < 0 or start_step < 0:
        raise InputError(f"seed {seed} and start_step {start_step} must be at least 0")
    if epochs is not None and (epochs < 1 or batch > windows * epochs):
        raise InputError(f"a batch of {batch} exceeds the {windows * epochs} windows there are")
