"""The order of batches: seeds, epochs, resuming anywhere, shards of processes."""

import collections
import gc
import itertools
import threading
import time

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.pipeline import batches, drawn_batches


class Numbers:
    """Row i holds i, twice, and as a float."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return {"x": np.full(2, i, np.int32), "y": np.float32(i)}


def order(size=11, count=None, **options):
    options = {"batch": 4, "seed": 0, **options}
    stream = itertools.islice(batches(Numbers(size), **options), count)
    return [batch["x"][:, 0].tolist() for batch in stream]


def test_draws_are_a_function_of_the_seed_and_the_step():
    def drawn(count=4, **options):
        stream = itertools.islice(drawn_batches(Numbers(11), batch=5, **options), count)
        return [batch["x"][:, 0].tolist() for batch in stream]

    want = [np.random.default_rng((3, step)).integers(0, 11, 5).tolist() for step in range(4)]
    assert drawn(seed=3) == want and drawn(2, seed=3, start_step=2) == want[2:]
    assert drawn(seed=4) != want
    batch = next(drawn_batches(Numbers(2), batch=3))
    assert batch["x"].shape == (3, 2) and batch["y"].dtype == np.float32
    with pytest.raises(InputError, match="there are no windows"):
        drawn_batches(Numbers(0), batch=1)


def test_batches_are_stacked_rows():
    batch = next(batches(Numbers(5), batch=3, shuffle=False))
    assert batch["x"].dtype == np.int32 and batch["y"].dtype == np.float32
    np.testing.assert_array_equal(batch["x"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(batch["y"], [0, 1, 2])


def test_the_seed_is_the_order():
    assert order(count=20) == order(count=20)
    assert order(count=5) != order(count=5, seed=1)
    assert order(count=3, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]


@pytest.mark.parametrize("size", [8, 11])
def test_each_epoch_gives_every_window_once_in_a_new_order(size):
    rows = list(itertools.chain(*order(size, epochs=4)))
    assert len(rows) == size * 4 // 4 * 4  # all whole batches of the four epochs together
    epochs = [rows[i : i + size] for i in range(0, len(rows), size)]
    for epoch in epochs[:-1]:
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != sorted(epochs[0])


def test_only_the_last_short_batch_of_all_is_dropped():
    assert [len(order(11, epochs=e)) for e in (1, 2, 3, 4)] == [2, 5, 8, 11]
    counts = collections.Counter(itertools.chain(*order(11, epochs=2)))
    assert sum(counts.values()) == 20 and max(counts.values()) == 2 and len(counts) == 11


@pytest.mark.parametrize("options", [{}, {"epochs": 5}, {"shuffle": False, "epochs": 5}])
def test_resuming_at_any_step_gives_the_rest_of_the_same_stream(options):
    whole = order(count=13, **options)
    for step in range(len(whole) + 1):
        rest = order(count=len(whole) - step, start_step=step, **options)
        assert rest == whole[step:]


def test_a_late_step_is_reached_at_once():
    began = time.monotonic()
    assert len(order(count=1, start_step=10**9)[0]) == 4
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("processes", [2, 4])
def test_shards_of_processes_are_the_rows_of_the_one_batch(processes):
    whole = order(count=9, start_step=2)
    shards = [
        order(count=9, start_step=2, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        for index, shard in enumerate(shards):
            assert shard[step] == batch[index::processes]


def test_threads_end_with_the_iterator():
    before = set(threading.enumerate())
    stream = batches(Numbers(1000), batch=4)
    next(stream)
    ours = set(threading.enumerate()) - before
    assert ours
    del stream
    gc.collect()
    for thread in ours:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_an_error_of_the_source_reaches_the_reader():
    class Broken(Numbers):
        def __getitem__(self, i):
            raise InputError("row is broken")

    with pytest.raises(InputError, match="row is broken"):
        next(batches(Broken(8), batch=2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch 0 must be"),
        ({"batch": 5, "process_count": 2}, "multiple of 2 processes"),
        ({"batch": 12, "epochs": 1}, "exceeds the 11 windows"),
        ({"epochs": 0}, "exceeds the 0 windows"),
        ({"size": 0}, "no windows"),
        ({"start_step": -1}, "start_step -1"),
        ({"seed": -1}, "seed -1"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"process_count": 0}, "process 0 of 0"),
        ({"process_index": -1, "process_count": 2}, "process -1 of 2"),
    ],
)
def test_numbers_without_sense_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        order(**{"count": 1, **options})


def test_a_batch_may_be_larger_than_the_source_if_it_is_passed_over_often_enough():
    assert order(3, batch=5, epochs=2, shuffle=False) == [[0, 1, 2, 0, 1]]
