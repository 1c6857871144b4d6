"""The training loop: what it saves, goes on from, and says when something goes wrong."""

import json
import os
import resource
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pangu_jax.checkpoint.store import CHECKPOINTS, DISCARDED, UNFINISHED, Store
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.train import early_stopping, loop, resume, stages
from pangu_jax.train.early_stopping import StopRule
from pangu_jax.train.loop import Stage, train, train_stages
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import MetricLog, read_metrics
from pangu_jax.train.optimizer import make_optimizer, schedule
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.stop_signal import Stopped

SPEC = {
    "embed": {"table": Spec((264, 8), ("vocab", "embed"), Normal(0.5))},
    "head": {"kernel": Spec((8, 264), ("embed", "vocab"), Normal(0.25))},
}
TEXT = [Document(str(i), f"text {i} of {i * i}. " * 5) for i in range(20)]


def loss(params, frozen, batch, key):
    del frozen, key
    logits = params["embed"]["table"][batch["tokens"]] @ params["head"]["kernel"]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    # A row may ask for trouble: its loss becomes what it names.
    nats = nats * batch["factor"][:, None]
    return (nats * batch["weights"]).sum(), batch["weights"].sum(), {}


def run(folder, *, steps=8, every=2, keep=2, at=None, rate=0.01, cfg=None, **rest):
    """Trains; `at` is {step: function called when that step's batch is made}."""

    def stream(step):
        source = PackedTokens(tokenize(TEXT, ByteTokenizer()), 16)
        for batch in batches(source, batch=4, start_step=step):
            step += 1
            batch["factor"] = np.ones(4, np.float32)
            if at and step in at:
                asked = at[step]()
                batch["factor"] *= np.float32(asked if isinstance(asked, float) else 1)
            yield batch

    cfg = cfg or LoopConfig(steps, checkpoint_every=every, keep=keep)
    settings = OptimizerConfig(learning_rate=rate, schedule="constant", warmup_fraction=0)
    return train(
        loss,
        SPEC,
        stream,
        cfg=cfg,
        optimizer=make_optimizer(settings, steps),
        schedule=schedule(settings, steps),
        folder=folder,
        **rest,
    )


def steps_in(folder):
    with Store(folder, writes=False) as store:
        return store.steps()


def losses(folder):
    return {row["step"]: row["loss"] for row in read_metrics(folder / "metrics.jsonl")}


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """Every run here compiles the same step; they find it on disk."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def test_the_latest_checkpoints_stay_and_every_step_is_told(whole):
    _, folder = whole
    assert steps_in(folder) == [6, 8]
    assert list(losses(folder)) == list(range(1, 9))
    assert not list((folder / CHECKPOINTS).glob("*tmp*"))
    assert not (folder / CHECKPOINTS / DISCARDED).exists()


def test_initial_values_and_losses_are_drawn_with_different_keys(tmp_path, monkeypatch):
    keys, init_state, make_step = [], stages.init_state, loop.make_step

    def init(*arguments, key, **options):
        keys.append(key)
        return init_state(*arguments, key=key, **options)

    def make(*arguments, **options):
        step = make_step(*arguments, **options)
        return lambda state, batch, key, frozen: (
            keys.append(key),
            step(state, batch, key, frozen),
        )[1]

    monkeypatch.setattr(stages, "init_state", init)
    monkeypatch.setattr(loop, "make_step", make)
    run(tmp_path, steps=2)
    first, *others = (tuple(jax.random.key_data(key).tolist()) for key in keys)
    assert len(others) == 2 and first not in others


def signals(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_the_rest_is_the_same(tmp_path, whole, kind):
    before = signal.getsignal(kind)
    with pytest.raises(Stopped) as stop:
        run(tmp_path, every=100, at={3: signals(kind)})
    assert stop.value.status == 128 + kind
    assert signal.getsignal(kind) is before
    saved = stop.value.step
    assert saved in (3, 4)  # the batch may be made while the step before it runs
    assert steps_in(tmp_path) == [saved]
    # Half a line, and lines of steps that were not saved, as a kill leaves them.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": saved + 1, "loss": 0.0}) + '\n{"step": 7, "lo')
    state = run(tmp_path, every=100)
    chex.assert_trees_all_equal(state, whole[0])
    assert losses(tmp_path) == losses(whole[1])


def test_a_run_that_is_told_to_stop_after_an_evaluation_is_saved_there(tmp_path, whole):
    cfg, asked = LoopConfig(8, checkpoint_every=100, evaluate_every=3), []
    rest = {"cfg": cfg, "evaluate": lambda params: {}}
    with pytest.raises(Stopped) as stop:
        run(tmp_path, should_stop=lambda: asked.append(1) is None and len(asked) == 2, **rest)
    assert (stop.value.step, stop.value.status) == (6, 0)
    assert steps_in(tmp_path) == [6]
    chex.assert_trees_all_equal(run(tmp_path, **rest), whole[0])


def test_checkpoints_and_evaluations_are_due_at_multiples_and_at_the_end():
    cfg = LoopConfig(7, checkpoint_every=2, evaluate_every=3)
    timeline = stages.StageSequence((), (), cfg, None, None)
    due = [timeline.due(number) for number in range(1, 8)]
    assert [n for n, (evaluates, _) in enumerate(due, 1) if evaluates] == [3, 6, 7]
    assert [n for n, (_, saves) in enumerate(due, 1) if saves] == [2, 4, 6]
    assert [timeline.boundary(n, 7) for n in range(7)] == [2, 2, 3, 4, 6, 6, 7]


def test_a_second_interrupt_does_not_wait(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, at={3: twice})


def test_a_signal_at_the_last_step_changes_nothing(tmp_path, whole):
    state = run(tmp_path, at={8: signals(signal.SIGTERM)})
    chex.assert_trees_all_equal(state, whole[0])


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path, whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path)))
    thread.start()
    thread.join()
    chex.assert_trees_all_equal(found[0], whole[0])


@pytest.mark.parametrize(("step", "kept"), [(1, "no checkpoint"), (4, "step 2 is"), (5, "step 4")])
def test_a_loss_that_is_not_finite_names_its_step_and_what_is_kept(tmp_path, step, kept):
    with pytest.raises(InputError, match=rf"loss is not finite at step {step}: loss nan.*{kept}"):
        run(tmp_path, at={step: lambda: np.nan})
    assert all(good < step for good in steps_in(tmp_path))
    with Store(tmp_path, writes=False) as store:
        for good in store.steps():
            shapes = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype),
                SPEC,
                is_leaf=lambda x: isinstance(x, Spec),
            )
            params, _ = store.restore(good, shapes)
            chex.assert_tree_all_finite(params)


def test_a_gradient_that_is_not_finite_is_named_too(tmp_path):
    with pytest.raises(InputError, match=r"gradient is not finite at step 2: loss \d"):
        # 1e35 times the loss is finite, the square of its gradient is not.
        run(tmp_path, at={2: lambda: 1e25})


def test_parameters_that_overflow_after_a_good_step_are_not_saved(tmp_path):
    with pytest.raises(InputError, match="parameters are not finite after step 1; no checkpoint"):
        run(tmp_path, rate=3.4e38, every=1)
    assert steps_in(tmp_path) == []


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, whole):
    try:
        with pytest.raises(InputError, match=r"checkpoints: File too large; step [24] is kept"):
            run(tmp_path, at={5: lambda: limit_files(3000)})
    finally:
        limit_files(resource.RLIM_INFINITY)
    assert steps_in(tmp_path) in ([2], [2, 4])  # step 4 may have been on its way
    chex.assert_trees_all_equal(run(tmp_path), whole[0])  # and with room again, it goes on
    assert {p.name for p in (tmp_path / CHECKPOINTS).iterdir()} == {"6", "8"}


def test_metrics_that_cannot_be_written_end_the_run_with_a_sentence(tmp_path, whole):
    try:
        with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: File too large"):
            run(tmp_path, every=100, at={5: lambda: limit_files(300)})
    finally:
        limit_files(resource.RLIM_INFINITY)
    chex.assert_trees_all_equal(run(tmp_path), whole[0])


def test_a_lost_folder_ends_the_run_with_a_sentence(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=r"cannot save .*run/checkpoints"):
        run(folder, at={5: lambda: (folder / CHECKPOINTS).rename(tmp_path / "gone")})
    # No run is begun anew in its place; a save that had begun may still have come to its end there.
    assert {p.name for p in folder.glob("checkpoints/*") if p.name.isdecimal()} <= {"4"}
    assert (tmp_path / "gone" / "2").is_dir()


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with Store(tmp_path), pytest.raises(InputError, match="another process is training in"):
        run(tmp_path)


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_run_does_not_go_on_from_values_that_are_not_finite(tmp_path, whole, item):
    values = jax.tree.map(lambda x: x * jnp.nan, getattr(whole[0], item))
    state = whole[0].replace(**{item: values})
    with Store(tmp_path) as store:
        store.save(8, state.params, {"step": state.step, "opt_state": state.opt_state})
    with pytest.raises(InputError, match=r"checkpoints/8: .*table holds NaN"):
        run(tmp_path, steps=9)


def test_reading_while_a_run_writes_disturbs_nothing(tmp_path, whole):
    seen = []

    def read():
        with Store(tmp_path, writes=False) as store:
            seen.append(store.latest())

    state = run(tmp_path, at=dict.fromkeys(range(1, 9), read))
    chex.assert_trees_all_equal(state, whole[0])
    assert seen[0] is None and seen[-1] in (4, 6)


def test_what_a_killed_save_left_is_cleared_and_never_taken_for_a_checkpoint(tmp_path, whole):
    run(tmp_path, steps=4)
    left = tmp_path / CHECKPOINTS / f"9{UNFINISHED}"
    left.mkdir()
    (left / "part").write_text("x")
    (tmp_path / CHECKPOINTS / DISCARDED / "1").mkdir(parents=True)
    assert steps_in(tmp_path) == [2, 4]
    assert left.exists()  # a reader does not touch it
    chex.assert_trees_all_equal(run(tmp_path), whole[0])
    assert {p.name for p in (tmp_path / CHECKPOINTS).iterdir()} == {"6", "8"}


def test_saving_does_not_wait_for_the_disk_and_donated_arrays_are_safe(tmp_path):
    params = {"x": jnp.arange(4.0)}
    with Store(tmp_path) as store:
        store.save(1, params, {"step": jnp.int32(1)})
        changed = jax.jit(lambda p: jax.tree.map(lambda x: x * 0 - 1, p), donate_argnums=0)(params)
        store.wait()
        shapes = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
        assert np.array_equal(store.restore(1, shapes)[0]["x"], np.arange(4.0))
    assert np.array_equal(changed["x"], -np.ones(4))


def test_a_metrics_file_is_never_without_the_lines_it_had(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, start_step=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    log.close()

    def die(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(RuntimeError, match="killed"):
        MetricLog(path, start_step=2)
    monkeypatch.undo()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    MetricLog(path, start_step=2).close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


def test_what_several_processes_fail_in_is_told_by_its_first_line(monkeypatch):
    class Kept:
        def abandon(self):
            pass

        def latest(self):
            return 4

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    words = r"has ended, or cannot be reached \(the peer is gone\); step 4 is saved; start all 2"
    with pytest.raises(InputError, match=words), resume.explained(Kept()):
        raise jax.errors.JaxRuntimeError("the peer is gone\nand where that was noticed")
    with pytest.raises(InputError, match=rf"\({'x' * 200}\)"), resume.explained(Kept()):
        raise jax.errors.JaxRuntimeError("x" * 300)


def test_states_are_restored_to_where_the_layout_or_the_device_is():
    shapes = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    assert resume.on_device(shapes, layout=object()) is shapes  # they say themselves
    (found,) = jax.tree.leaves(resume.on_device(shapes, None))
    assert found.sharding.device_set == {jax.devices()[0]}


def other(params, frozen, batch, key):
    """Of another stage: pulls at what the frozen arrays say, and draws."""
    wanted = frozen["table"] + 0.1 * jax.random.normal(key, frozen["table"].shape)
    error = ((params["embed"]["table"] - wanted) ** 2).sum()
    return error * batch["rows"].sum(), batch["rows"].sum(), {"error": error}


def staged(folder, at=None, stages=3, **rest):
    def rows(first):
        def stream(step):
            for number in range(step, 100):
                if at and first + number + 1 in at:
                    at[first + number + 1]()
                yield {"rows": np.full(4, 1.0 + number, np.float32)}

        return stream

    frozen = {"table": jnp.ones((264, 8))}
    plan = [
        Stage(3, other, rows(0), optax.adam(0.1), frozen=frozen),
        Stage(3, other, rows(3), frozen={"table": -frozen["table"]}),
        Stage(2, other, rows(6), optax.sgd(0.1, momentum=0.9), frozen=frozen),
    ][-stages:]
    cfg = LoopConfig(sum(stage.steps for stage in plan), checkpoint_every=2)
    return train_stages(plan, SPEC, cfg=cfg, folder=folder, unit="rows", **rest)


def test_stages_go_on_where_they_were_stopped_with_the_same_bits(tmp_path):
    whole = staged(tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [line["stage"] for line in lines] == [1, 1, 1, 2, 2, 2, 3, 3]
    # Every stage's batches begin anew; the second stage keeps its optimizer's state.
    assert [line["weight"] for line in lines] == [4, 8, 12, 4, 8, 12, 4, 8]
    assert len(jax.tree.leaves(whole.opt_state)) == 2 and "rows_per_s" in lines[0]
    stopped = []
    for step in (3, 4, 6, 7):
        with pytest.raises(Stopped) as stop:
            staged(tmp_path / "parts", at={step: signals(signal.SIGTERM)})
        stopped.append(stop.value.step)
    assert stopped == [3, 4, 6, 7]
    chex.assert_trees_all_equal(staged(tmp_path / "parts"), whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_stages_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="the first stage needs an optimizer"):
        staged(None, stages=2)
    with pytest.raises(InputError, match="at least one step each"):
        train_stages([], SPEC, cfg=LoopConfig(5), folder=None)
    with pytest.raises(InputError, match="have 4 steps together, the run 5"):
        train_stages([Stage(4, other, iter, optax.sgd(1.0))], SPEC, cfg=LoopConfig(5), folder=None)
    with pytest.raises(Stopped):
        staged(tmp_path, at={4: signals(signal.SIGTERM)})
    rows = [Stage(n, other, iter, optax.adam(0.1)) for n in (5, 3)]
    with pytest.raises(InputError, match=r"checkpoints/4 is of stage 2, .* step 4 is of stage 1"):
        train_stages(rows, SPEC, cfg=LoopConfig(8), folder=tmp_path)
    with pytest.raises(InputError, match="holds step 4, the run has 2 steps"):
        staged(tmp_path, stages=1)


@pytest.mark.parametrize("seed", [5, (5, 6)])
def test_a_stop_rule_keeps_the_best_and_goes_on_with_it(tmp_path, seed):
    """The fourth evaluation is the last for want of better ones."""
    scores, several = iter((3.0, 1.0, 2.0, 1.5)), seed != 5

    def evaluate(params):
        score = next(scores)
        return {"score": [score, 9.0 - score] if several else score}

    def rows(at):
        def stream(step):
            for number in range(step + 1, 100):
                if number == at:
                    os.kill(os.getpid(), signal.SIGINT)
                yield {"rows": np.ones((2, 4) if several else 4, np.float32)}

        return stream

    def run(at=0):
        return train(
            other,
            SPEC,
            rows(at),
            cfg=LoopConfig(20, seed=seed, evaluate_every=2, chunk=2),
            optimizer=optax.sgd(0.01),
            frozen={"table": jnp.ones((264, 8))},
            folder=tmp_path,
            evaluate=evaluate,
            rule=StopRule("score", 2),
        )

    with pytest.raises(Stopped):
        run(at=5)
    state = run()
    # Of two seeds the second is best at first, and is over earlier; both end the run.
    assert int(state.step) == 8
    assert state.best.step.tolist() == ([4, 2] if several else 4)
    assert state.best.score.tolist() == ([1.0, 6.0] if several else 1.0)
    chex.assert_trees_all_equal(run(), state)  # nothing is left to do
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(state.best.params, state.params)


def test_what_is_best_stays_bound_to_its_device_or_free():
    """Else the step after an evaluation would be compiled anew."""
    free = early_stopping.begin({"scale": jnp.ones(3)})
    for best in (free, jax.device_put(free, jax.devices()[1])):
        found = early_stopping.judge(best, best.params, 1.0, 2, StopRule("score", 1))
        for old, new in zip(jax.tree.leaves(best), jax.tree.leaves(found), strict=True):
            assert (new.committed, new.sharding) == (old.committed, old.sharding)


def test_a_score_that_is_not_there_or_not_finite_ends_the_run(tmp_path):
    with pytest.raises(InputError, match="wants score, but nothing is evaluated"):
        run(tmp_path, rule=StopRule("score", 1))
    with pytest.raises(InputError, match="wants score, evaluated are a, b"):
        run(tmp_path, steps=2, evaluate=lambda _: {"a": 1, "b": 2}, rule=StopRule("score", 1))
    with pytest.raises(InputError, match=r"evaluated score is not finite at step 2: nan; no check"):
        run(tmp_path, steps=2, evaluate=lambda _: {"score": np.nan}, rule=StopRule("score", 1))
