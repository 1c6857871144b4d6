"""The loop: one piece or several, the same bits; metrics once a step; stops that lose nothing."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint.store import Store
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.train.loop import LoopConfig, Stopped, train
from pangu_jax.train.metrics import MetricLog, ProgressLine, read_metrics
from pangu_jax.train.optimizer import OptimizerConfig

SPEC = {"kernel": Spec((4, 2), ("embed", "mlp"), Normal(1.0))}
OPTIMIZER = OptimizerConfig(learning_rate=0.1)


def loss(params, batch, key):
    noise = jax.random.normal(key, (2,))  # so that a wrong key would show
    error = batch["x"] @ params["kernel"] + 0.1 * noise - batch["y"]
    return (error**2).sum(), jnp.float32(error.size), {}


def batches(step):
    while True:
        rng = np.random.default_rng(step)
        yield {
            "x": rng.normal(size=(8, 4)).astype(np.float32),
            "y": rng.normal(size=(8, 2)).astype(np.float32),
        }
        step += 1


def go(folder, *, steps=9, stream=batches, function=loss, evaluate=None, **options):
    cfg = LoopConfig(steps, checkpoint_every=3, **options)
    return train(
        function, SPEC, stream, cfg=cfg, optimizer=OPTIMIZER, folder=folder, evaluate=evaluate
    )


def interrupted(at):
    """Batches that ask the process to stop when the batch of step `at` is taken."""

    def stream(step):
        for number, batch in enumerate(batches(step), start=step + 1):
            if number == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return stream


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def test_in_several_pieces_it_ends_in_the_same_bits(tmp_path):
    want = go(tmp_path / "whole")
    for at in (2, 6):
        with pytest.raises(Stopped) as stop:
            go(tmp_path / "pieces", stream=interrupted(at))
        assert stop.value.args == (at,)
        with Store(tmp_path / "pieces") as store:
            assert store.latest() == at
    assert bits(go(tmp_path / "pieces")) == bits(want)
    whole, pieces = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "pieces"))
    assert [line["step"] for line in pieces] == list(range(1, 10))
    assert [x["loss"] for x in pieces] == [x["loss"] for x in whole]
    assert bits(go(tmp_path / "pieces")) == bits(want)  # nothing left to do


def test_it_learns_and_evaluates_when_told(tmp_path):
    calls = []

    def evaluate(params):
        calls.append(params["kernel"].shape)
        return {"score": 1.5}

    go(tmp_path, evaluate=evaluate, evaluate_every=4)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in lines if "eval_score" in x] == [4, 8, 9] and len(calls) == 3
    losses = [x["loss"] for x in lines if "loss" in x]
    assert losses[-1] < losses[0]
    assert all({"loss", "grad_norm", "learning_rate", "tokens_per_s"} <= x.keys()
               for x in lines if "loss" in x)  # fmt: skip


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_state(tmp_path):
    def stream(step):
        for number, batch in enumerate(batches(step), start=step + 1):
            if number == 5:
                batch["y"][0, 0] = np.inf
            yield batch

    with pytest.raises(InputError, match=r"not finite at step 5.*step 3 is saved"):
        go(tmp_path, stream=stream)
    with Store(tmp_path) as store:
        assert store.latest() == 3
    assert bits(go(tmp_path)) == bits(go(tmp_path / "whole"))


def test_metrics_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert [x["step"] for x in read_metrics(path)] == [1, 2]
    log = MetricLog(path, start_step=1)
    log.write(2, {"loss": 2.5})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]
    with pytest.raises(InputError, match="cannot write"):
        MetricLog(tmp_path / "metrics.jsonl" / "below", start_step=0)


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
