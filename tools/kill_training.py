"""Kills training again and again, and checks that nothing is lost.

    python tools/kill_training.py --kills 1000 [--inside 250] [--seed 0] [--out report.json]
    python tools/kill_training.py --kills 1000 --subject forecaster

Trains a bigram model, or two seeds of a forecaster with its stop rule, with the library's own loop,
optimizer, batches and store, in a child process that is ended by SIGKILL: at a random moment of its
start or of its training, or, now and then, at one after a checkpoint began to be written.
After every kill each checkpoint folder there is must be readable, whole and finite. The next child
goes on where the last one ended; when a run has come to its end, its parameters, optimizer state
and metrics are compared, bit for bit, with those of a run that nobody disturbed, and another run
begins, until there were enough kills.

Children are forked from a process that has imported jax but started none of its threads, so that a
life costs about a second. Exits with 1, and says why, at the first thing lost.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax

from pangu_jax.checkpoint.store import CHECKPOINTS, DISCARDED, UNFINISHED, Store
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.core.tree import flatten
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.models import timepro
from pangu_jax.train import forecast
from pangu_jax.train.forecast import fit
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.metrics import read_metrics
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.resume import beside_parameters, on_device
from pangu_jax.train.step import TrainState, abstract_state

WIDTH = 16
SPEC = {
    "embed": {"table": Spec((264, WIDTH), ("vocab", "embed"), Normal(0.5))},
    "head": {"kernel": Spec((WIDTH, 264), ("embed", "vocab"), Normal(0.25))},
}
OPTIMIZER = OptimizerConfig(learning_rate=4e-3)
EVERY = 2  # steps between checkpoints
MODEL = timepro.TimeProConfig(look_back=8, horizon=2, layers=1, patch=8, stride=8)
SEEDS = (1, 2)


def loss(params, frozen, batch, key):
    """Next-byte cross-entropy of a bigram model: compiled in no time, so that lives are short."""
    del frozen, key
    logits = params["embed"]["table"][batch["tokens"]] @ params["head"]["kernel"]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return (nats * batch["weights"]).sum(), batch["weights"].sum(), {}


def train_bigram(folder: Path, steps: int) -> None:
    """Trains so many steps, or what is left of them."""
    text = [Document(str(i), f"document {i} of {i * i} " * 4) for i in range(40)]
    source = PackedTokens(tokenize(text, ByteTokenizer()), 32)
    train(
        loss,
        SPEC,
        lambda step: batches(source, batch=4, seed=3, start_step=step),
        cfg=LoopConfig(steps, seed=1, checkpoint_every=EVERY, keep=2),
        optimizer=make_optimizer(OPTIMIZER, steps),
        folder=folder,
    )


def train_forecaster(folder: Path, steps: int) -> None:
    """The same, in epochs of as many steps as lie between checkpoints."""
    rows = EVERY * 4 + MODEL.look_back + MODEL.horizon - 1
    series = np.sin(np.arange(2 * rows)[:, None] / (3, 5)).astype(np.float32)
    starts = np.arange(EVERY * 4, dtype=np.int32)
    with_rule = fitting(steps)
    fit(series, starts, starts + rows, model=MODEL, cfg=with_rule, seeds=SEEDS, folder=folder)


def fitting(steps: int) -> forecast.FitConfig:
    """A training that takes all its steps."""
    epochs = steps // EVERY
    return forecast.FitConfig(batch=4, learning_rate=1e-3, epochs=epochs, patience=epochs)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is trained, and the template of its state."""

    train: Callable[[Path, int], None]
    state: Callable[[int], TrainState]


SUBJECTS = {
    "bigram": Subject(
        train_bigram, lambda steps: abstract_state(SPEC, make_optimizer(OPTIMIZER, steps))
    ),
    "forecaster": Subject(
        train_forecaster,
        lambda steps: abstract_state(
            timepro.spec(MODEL),
            forecast.adam(fitting(steps), EVERY),
            seeds=len(SEEDS),
            keeps_best=True,
        ),
    ),
}


def digests(folder: Path, subject: Subject, steps: int) -> dict[int, str]:
    """A hash of every leaf of every checkpoint there is; raises where one cannot be read."""
    state = subject.state(steps)
    params, rest = on_device((state.params, beside_parameters(state)), None)
    found = {}
    with Store(folder, writes=False) as store:
        for step in store.steps():
            trees = store.restore(step, params, rest)
            digest = hashlib.sha256()
            for name, leaf in flatten(trees).items():
                array = np.asarray(leaf)
                if not np.isfinite(array).all():
                    raise ValueError(f"step {step} holds values of {name} that are not finite")
                digest.update(name.encode() + array.tobytes())
            if int(trees[1]["step"]) != step:
                raise ValueError(f"the folder {step} is of step {int(trees[1]['step'])}")
            found[step] = digest.hexdigest()
    return found


def fork(function, *arguments) -> int:
    """Runs a function in a child; its traceback goes to stderr, its progress lines nowhere."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        function(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def quiet(function, *arguments) -> None:
    with open(os.devnull, "w") as sys.stderr:
        function(*arguments)


class Reader:
    """A child that reads checkpoints on request, so that the parent never starts jax's threads."""

    def __init__(self, subject: Subject, steps: int):
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        fork(self._serve, (asked, answered), (ask, answer), subject, steps)
        os.close(asked), os.close(answered)
        self._ask, self._answer = os.fdopen(ask, "w"), os.fdopen(answer)

    def digests(self, folder: Path) -> dict[int, str]:
        """What the function of that name gives."""
        print(folder, file=self._ask, flush=True)
        line = self._answer.readline()
        if not line:
            raise SystemExit("the reader ended")
        found = json.loads(line)
        if isinstance(found, str):
            raise SystemExit(f"LOST: {found}")
        return {int(step): digest for step, digest in found.items()}

    @staticmethod
    def _serve(mine: tuple[int, int], other: tuple[int, int], subject, steps: int) -> None:
        for end in other:  # or the questions would never end
            os.close(end)
        asked, answered = mine
        with os.fdopen(asked) as questions, os.fdopen(answered, "w") as answers:
            for line in questions:
                try:
                    found = digests(Path(line.strip()), subject, steps)
                except Exception as error:
                    found = f"{type(error).__name__}: {error}"
                print(json.dumps(found), file=answers, flush=True)


def unfinished(folder: Path) -> bool:
    return any((folder / CHECKPOINTS).glob(f"*{UNFINISHED}*"))


def ended(child: int) -> bool:
    """Whether a child ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(child: int, condition, seconds: float = 600.0) -> bool:
    """Waits for a condition, so many seconds at most; False when that or the child's end came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ended(child):
        if condition():
            return True
        time.sleep(0.0005)
    return False


class Pace:
    """How long things take on this machine just now, in seconds; follows what is seen."""

    start, save = 2.0, 0.1


def newest(folder: Path) -> int:
    """The newest whole checkpoint, 0 for none."""
    places = (folder / CHECKPOINTS).glob("*")
    return max((int(p.name) for p in places if p.name.isdecimal()), default=0)


def one_life(
    folder: Path, train: Callable[[], None], inside: bool, draw: random.Random, pace: Pace
) -> dict:
    """Starts a child and kills it; says what it was doing. A child that ends by itself is not.

    One of four moments that need not be inside a save is in the start; the others come a random
    number of checkpoints later.
    """
    metrics = folder / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None
    goal = newest(folder) + EVERY * draw.randrange(4)

    def trains() -> bool:
        return metrics.exists() and metrics.stat().st_ino != before

    begin = time.monotonic()
    child = fork(quiet, train)
    if not inside and draw.random() < 0.25:
        wait_until(child, lambda: False, draw.uniform(0, pace.start))
    elif wait_until(child, trains):
        pace.start = time.monotonic() - begin
        wait_until(child, lambda: newest(folder) >= goal)
        if inside:
            wait_until(child, lambda: unfinished(folder))
        begun = time.monotonic()
        wait_until(child, lambda: inside and not unfinished(folder), draw.uniform(0, pace.save))
        if inside and not unfinished(folder):
            pace.save = 0.7 * pace.save + 0.3 * (time.monotonic() - begun)
    return kill(child, folder)


def kill(child: int, folder: Path) -> dict:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("LOST: a run could not go on after a kill")
    discarded = folder / CHECKPOINTS / DISCARDED
    return {
        "killed": os.WIFSIGNALED(status),
        "inside": unfinished(folder),
        "discarding": discarded.is_dir() and any(discarded.iterdir()),
    }


def compare(reader: Reader, folder: Path, reference: Path, steps: int) -> None:
    found, wanted = reader.digests(folder), reader.digests(reference)
    if found.get(steps) != wanted[steps]:
        raise SystemExit(f"LOST: the final state in {folder} differs from the undisturbed run's")
    rows = [
        [{k: v for k, v in row.items() if not k.endswith("_per_s")} for row in read_metrics(path)]
        for path in (folder / "metrics.jsonl", reference / "metrics.jsonl")
    ]
    if rows[0] != rows[1]:
        raise SystemExit(f"LOST: the metrics in {folder} differ from the undisturbed run's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--subject", choices=SUBJECTS, default="bigram")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside", type=int, help="how many at least are to hit a save")
    parser.add_argument("--steps", type=int, default=160, help="of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="where the report goes, as JSON")
    options = parser.parse_args()
    inside = options.kills // 4 if options.inside is None else options.inside
    begin, draw, pace = time.monotonic(), random.Random(options.seed), Pace()
    root = Path(tempfile.mkdtemp(prefix="kill-training-"))
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    reference, folder = root / "reference", root / "run"
    subject = SUBJECTS[options.subject]
    os.waitpid(fork(quiet, subject.train, reference, options.steps), 0)
    reader = Reader(subject, options.steps)
    train = functools.partial(subject.train, folder, options.steps)
    told = dict.fromkeys(("kills", "inside_a_save", "discarding", "folders_read", "runs"), 0)
    while told["kills"] < options.kills:
        # Spread evenly, and more of them while too few have hit.
        wanted = inside * (told["kills"] + 1) > told["inside_a_save"] * options.kills
        life = one_life(folder, train, wanted, draw, pace)
        told["folders_read"] += len(reader.digests(folder))
        if life["killed"]:
            told["kills"] += 1
            told["inside_a_save"] += life["inside"]
            told["discarding"] += life["discarding"]
            if told["kills"] % 50 == 0:
                report(told, options, begin)
        else:
            compare(reader, folder, reference, options.steps)
            told["runs"] += 1
            shutil.rmtree(folder)
    os.waitpid(fork(quiet, train), 0)
    compare(reader, folder, reference, options.steps)
    told["runs"] += 1
    shutil.rmtree(root)
    report(told, options, begin)
    if told["inside_a_save"] < inside:
        raise SystemExit(f"only {told['inside_a_save']} kills hit a save, {inside} were wanted")


def report(told: dict, options: argparse.Namespace, begin: float) -> None:
    seconds = round(time.monotonic() - begin)
    text = json.dumps(
        {"subject": options.subject, **told, "steps_a_run": options.steps, "seconds": seconds}
    )
    print(text, flush=True)
    if options.out:
        Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
