"""Where tracking goes on, and which windows it moves; whole predictions are in tests/cli."""

import numpy as np
import pytest

from pangu_jax.checkpoint.forecaster import Forecaster, ForecasterConfig
from pangu_jax.core.errors import InputError
from pangu_jax.data.series import Series
from pangu_jax.data.timestamp import Timestamps
from pangu_jax.data.timestep import TimeStep
from pangu_jax.eval.intervals import track
from pangu_jax.eval.predict import arrange, half_widths, tracked_from
from pangu_jax.models.timepro_config import TimeProConfig


def tracked_to(time):
    """A forecaster that looks back on 16 rows, without parameters: it is not asked to forecast."""
    cfg = ForecasterConfig(
        TimeProConfig(16, 4, layers=1, patch=8, stride=8), ("a", "b"), (0.0, 0.0), (1.0, 1.0), 900,
        "s", False, (0,), 0.8, 0.8, "load.csv", rate=0.1, tracked_to=time,
    )  # fmt: skip
    return Forecaster(cfg, [], np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize(
    ("time", "offsets", "row"),
    [
        ("2024-02-27 01:00:00", None, 20),
        ("2024-02-27 01:00:00.5", None, 21),  # between two rows
        ("2024-02-27 01:00:00+02:00", None, 20),  # local times, where one has no offset
        ("2024-02-27 01:00:00", 2, 20),
        ("2024-02-27 01:00:00+02:00", 2, 20),
        ("2024-02-27 00:00:00+01:00", 2, 20),  # the same instant
        ("2024-02-20", None, 15),  # before the file: from its first window
        ("2024-03-20", None, 32),  # after it
    ],
)
def test_tracking_goes_on_at_the_row_of_that_time(time, offsets, row):
    local = np.datetime64("2024-02-26T20:00", "us") + np.arange(32) * np.timedelta64(900, "s")
    offset = None if offsets is None else np.full(32, offsets * np.timedelta64(3600, "s"))
    assert tracked_from(tracked_to(time), Timestamps(local, offset)) == row - 15


def test_windows_of_before_have_the_stored_widths_and_move_none():
    model = tracked_to("2024-02-27")
    rng = np.random.default_rng(0)
    left, there = 9 * rng.normal(size=(20, 4, 2)), rng.random((20, 4, 2)) < 0.8
    found = half_widths(model, left, there, older=7)
    assert len(found) == 21
    np.testing.assert_array_equal(found[:8], np.repeat(model.half_width[None], 8, 0))
    wanted = track(model.half_width, left[7:], rate=0.1, coverage=0.8, measured=there[7:])
    np.testing.assert_array_equal(found[7:], wanted)
    np.testing.assert_array_equal(half_widths(model, left, there, older=20)[-1], model.half_width)


def columns(*names):
    times = np.datetime64("2024-02-26", "us") + np.arange(3) * np.timedelta64(900, "s")
    values = np.arange(3.0)[:, None] + 10 * np.arange(len(names))
    return Series(values, names, times, TimeStep(900, "s"), filled=values == 11)


def test_columns_are_taken_in_the_model_s_order():
    values, filled = arrange(tracked_to("2024-02-26"), columns("b", "a"), "x.csv")
    np.testing.assert_array_equal(values, [[10, 0], [11, 1], [12, 2]])
    np.testing.assert_array_equal(filled, values == 11)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a",), "lacks b"),
        (("a", "b", "c"), "has c, which the model does not know"),
        (("b", "c"), "lacks a and has c, which"),
    ],
)
def test_other_columns_are_named(names, said):
    with pytest.raises(InputError, match=f"x.csv {said}"):
        arrange(tracked_to("2024-02-26"), columns(*names), "x.csv")
