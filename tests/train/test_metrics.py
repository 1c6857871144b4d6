"""What a run writes down and shows."""

import io

import numpy as np
import pytest
from rich.console import Console

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import MetricLog, ProgressLine, read_metrics
from pangu_jax.train.optimizer import make_optimizer, schedule
from pangu_jax.train.optimizer_config import OptimizerConfig


def test_a_run_learns_and_is_evaluated_when_it_was_told(tmp_path):
    spec = {"kernel": Spec((4, 2), ("embed", "mlp"), Normal(1.0))}
    target = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    calls = []

    def loss(params, frozen, batch, key):
        del frozen, key
        error = batch["x"] @ (params["kernel"] - target)
        return (error**2).sum(), np.float32(error.size), {}

    def batches(step):
        while True:
            yield {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}

    def evaluate(params):
        calls.append(params["kernel"].shape)
        return {"score": 1.5}

    settings = OptimizerConfig(learning_rate=0.1)
    train(
        loss,
        spec,
        batches,
        cfg=LoopConfig(9, evaluate_every=4),
        optimizer=make_optimizer(settings, 9),
        schedule=schedule(settings, 9),
        folder=tmp_path,
        evaluate=evaluate,
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in lines if "eval_score" in x] == [4, 8, 9] and len(calls) == 3
    steps = [x for x in lines if "loss" in x]
    assert steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert {"loss", "weight", "grad_norm", "learning_rate", "tokens_per_s"} <= line.keys()


def test_metrics_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert [x["step"] for x in read_metrics(path)] == [1, 2]
    log = MetricLog(path, start_step=1)
    log.write(2, {"loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


@pytest.mark.parametrize("broken", ["{", "[" * 100_000, '{"loss": 3}', "3", '{"step": 1.5}', ""])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_no_line_is_dropped_for_another_that_is_none(broken, at, tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": NaN}}' for i in (1, 2, 3)]
    lines.insert(at, broken)
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    for read in (read_metrics, lambda p: MetricLog(p, start_step=2)):
        with pytest.raises(InputError, match=rf"metrics.jsonl line {at + 1} .*remove that line"):
            read(path)
    assert path.read_bytes() == before


def test_progress_is_plain_lines_without_a_terminal(capsys):
    line = ProgressLine("demo", 10, every_s=0)
    assert line.update(1, 2.5, 100) > 0
    line.update(10, 2.0, 100)
    line.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("demo 1/10  loss 2.500") and "s left" in first
    assert last.startswith("demo 10/10")


@pytest.mark.parametrize("name", ["steps", "accumulate", "checkpoint_every", "keep"])
def test_impossible_lengths_are_refused_by_name(name):
    with pytest.raises(InputError, match=name):
        LoopConfig(**{"steps": 3, name: 0})
    with pytest.raises(InputError, match="evaluate_every must be at least 0"):
        LoopConfig(3, evaluate_every=-1)


def test_speed_counts_from_the_start(monkeypatch):
    now = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr("pangu_jax.train.metrics.time.monotonic", lambda: next(now))
    line = ProgressLine("x", 10, start_step=0, shows=False)
    assert line.update(1, 0.5, 100) == 200
    assert line.update(2, 0.5, 100) == 100


@pytest.mark.parametrize("shows", [True, False])
def test_a_bar_is_shown_on_a_terminal_by_the_process_that_shows(monkeypatch, shows):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("pangu_jax.train.metrics.Console", lambda **_: terminal)
    line = ProgressLine("x", 2, shows=shows)
    line.update(1, 0.5, 100)
    line.close()
    assert ("tokens/s" in terminal.file.getvalue()) == shows
