"""Seconds of a training that was stopped count; those that a kill lost are not made up."""

import pytest

from pangu_jax.study import timing
from pangu_jax.train.stop_signal import Stopped


def test_training_is_timed_over_its_stops_and_not_at_all_after_a_kill(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def timed(seconds, step, stops=False):
        def train():
            now[0] += seconds
            (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
            if stops:
                raise Stopped(step)
            return "trained"

        return timing.timed(train, tmp_path, step)

    for seconds, step in ((3.0, 10), (4.0, 20)):
        with pytest.raises(Stopped):
            timed(seconds, step, stops=True)
    assert timed(5.0, 30) == ("trained", 12.0)
    assert timed(0.5, 31)[1] == 12.5  # killed after its end
    (tmp_path / "checkpoints" / "40").mkdir()
    assert timed(1.0, 50)[1] is None
    assert timed(1.0, 60)[1] is None
