"""Kills processes while they write folders over older ones, and looks at what is left.

    python tools/kill_writes.py --kills 200 [--writers 1] [--kinds forecaster artifact]

A child writes version after version of a folder until SIGKILL ends it, at a random moment. What is
there must then be one version as a whole, at least as new as the last that was there before the
child began, and once another write has ended well, nothing else may be left beside it. With several
writers at once each child writes to the same folder. Exits with 1 at the first thing lost.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from kill_training import fork

from pangu_jax.checkpoint import forecaster
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.export import artifact
from pangu_jax.models import timepro

MODEL = timepro.TimeProConfig(16, 4, 1, 16, 8, 8)


def filled(spec, number: float):
    return map_named(lambda _, leaf: np.full(leaf.shape, number, np.float32), spec)


def only(arrays) -> int:
    """The one number that all arrays hold."""
    found = {float(x) for array in arrays for x in (np.min(array), np.max(array))}
    if len(found) != 1:
        raise SystemExit(f"LOST: versions are mixed: {sorted(found)}")
    return int(found.pop())


def write_forecaster(folder: Path, number: int) -> None:
    cfg = forecaster.ForecasterConfig(
        model=MODEL, names=("a", "b"), mean=(float(number),) * 2, std=(1.0, 1.0),
        step_count=3600, step_unit="s", month_end=False, seeds=(0,), coverage=0.9,
        measured_coverage=0.9, trained_on=f"{number}",
    )  # fmt: skip
    params = filled(timepro.spec(MODEL), number)
    forecaster.save(forecaster.Forecaster(cfg, [params], np.full((4, 2), number)), folder)


def read_forecaster(folder: Path) -> int:
    found = forecaster.load(folder)
    arrays = [found.half_width, found.cfg.mean, *flatten(found.params).values()]
    return only([*arrays, int(found.cfg.trained_on)])


def write_artifact(folder: Path, number: int) -> None:
    with artifact.new_folder(folder) as new:
        for name in ("a.bin", "b.bin"):
            (new / name).write_bytes(np.full(50_000, number, np.int32).tobytes())
        artifact.save(artifact.Artifact("onnx", (), {}, ("cpu",), {"made": f"{number}"}), new)


def read_artifact(folder: Path) -> int:
    manifest = artifact.load(folder)
    arrays = [np.frombuffer((folder / n).read_bytes(), np.int32) for n in ("a.bin", "b.bin")]
    return only([*arrays, int(manifest.versions["made"])])


# How each kind of folder is written as a version of that number, and read back as the number.
KINDS = {
    "forecaster": (write_forecaster, read_forecaster),
    "artifact": (write_artifact, read_artifact),
}


def keep_writing(write, folder: Path, first: int, by: int) -> None:
    for number in range(first, 2**24, by):
        write(folder, number)


def one_round(kind, folder: Path, writers: int, least: int, draw: random.Random) -> int:
    """Starts the writers, kills them, and gives the version that is there."""
    children = [fork(keep_writing, kind[0], folder, least + 1 + i, writers) for i in range(writers)]
    time.sleep(draw.uniform(0, 0.15))
    for child in children:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("LOST: a writer failed; its message is above")
    try:
        found = kind[1](folder)
    except InputError as error:
        raise SystemExit(f"LOST: {error}") from error
    if found < least and writers == 1:
        raise SystemExit(f"LOST: version {found} is there, {least} was there before")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="of each kind")
    parser.add_argument("--writers", type=int, default=1, help="at once, in the same folder")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.kinds:
        kind, draw = KINDS[name], random.Random(options.seed)
        with tempfile.TemporaryDirectory(prefix="kill-writes-") as root:
            folder, versions = Path(root) / "out", set()
            kind[0](folder, 1)
            least = 1
            for _ in range(options.kills // options.writers):
                least = one_round(kind, folder, options.writers, least, draw)
                versions.add(least)
            kind[0](folder, least + 1)
            left = sorted(path.name for path in Path(root).iterdir() if path != folder)
            if left or kind[1](folder) != least + 1:
                raise SystemExit(f"LOST: a write that ended well leaves {left} beside the folder")
        print(f"{name}: {options.kills} kills, {len(versions)} versions read, nothing lost")


if __name__ == "__main__":
    sys.exit(main())
