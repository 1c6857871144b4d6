"""TimePro: the table of the paper, measured, beside baselines and without the state branch.

Source: "TimePro: Efficient Multivariate Long-term Time Series Forecasting with Variable- and
Time-Aware Hyper-state", arXiv 2505.20774, and its released code.

Claim examined: a scan over the variates, whose states select time points, forecasts better than
what came before, at linear cost.

    python experiments/timepro/run.py --preset smoke --data folder/with/ETTh1.csv   under a minute
    python experiments/timepro/run.py --preset cpu --data folder                    ETTh1-96
    python experiments/timepro/run.py --preset gpu --data folder --workers 6        one GPU

Expected on ETTh1-96: test MSE 0.375, MAE 0.398, over all 2785 windows.

Every cell (data set, horizon, variant) is one file below runs/<name>/cells/; a run that was stopped
goes on with the cells that are missing, and with their training, which is kept in training/<cell>/
meanwhile. results.json and report.md are made from those files after
every cell. Not reproduced: the paper's memory and speed figures, which are of another GPU; and what
ECL and Solar give, unless their files are brought along.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from config import PRESETS  # noqa: E402

from pangu_jax.checkpoint.store import discard  # noqa: E402
from pangu_jax.cli.stopping import script  # noqa: E402
from pangu_jax.core.cells import hold_run  # noqa: E402
from pangu_jax.core.config import read_json, to_json  # noqa: E402
from pangu_jax.core.errors import InputError  # noqa: E402
from pangu_jax.core.files import atomic_write  # noqa: E402

# What workers exit with that have nothing to report, or were told to stop.
STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)
MEASURING = 25  # seconds kept for measuring what was trained when time is up


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--data", required=True, help="the folder that holds the data sets' files")
    parser.add_argument("--out", help="the run's folder; default runs/timepro-<preset>")
    parser.add_argument("--only", nargs="*", help="data sets; default all of the preset")
    parser.add_argument("--variants", nargs="*", help="variants; default all of the preset")
    parser.add_argument("--horizons", nargs="*", type=int, help="default all of the preset")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the device")
    parser.add_argument(
        "--seconds",
        type=float,
        help="after so long everything has ended; trainings are cut at the end of an epoch, "
        "measured, marked, and gone on with the next time",
    )
    parser.add_argument("--report", action="store_true", help="only write the report again")
    parser.add_argument("--no-report", action="store_true", help="only run cells (no matplotlib)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Runs every cell that is not done yet, then writes the report."""
    began = time.monotonic()
    experiment = PRESETS[options.preset]
    folder = Path(options.out or f"runs/timepro-{options.preset}")
    cells = [
        cell
        for cell in experiment.cells
        if (not options.only or cell[0] in options.only)
        and (not options.horizons or cell[1] in options.horizons)
        and (not options.variants or cell[2] in options.variants)
    ]
    if not cells:
        raise InputError("no cell of the preset is of those data sets, horizons and variants")
    if options.worker:
        _work(cells, experiment, options, folder)
        return
    hold_run(folder, to_json(dataclasses.replace(experiment, cells=())))
    (folder / "cells").mkdir(exist_ok=True)
    for left in (folder / "cells").glob("*.claim"):  # of a run that was stopped
        left.unlink(missing_ok=True)
    if not options.report:
        if options.workers == 1:
            _work(cells, experiment, options, folder, began)
        else:
            _share(options, folder, began)
    results = collect(folder)
    done = sum(_is_done(folder / "cells" / f"{'-'.join(map(str, c))}.json") for c in cells)
    _say(f"{done} of {len(cells)} cells are done, {time.monotonic() - began:.0f} s")
    if not options.no_report:
        from report import write_report

        _say(f"{write_report(folder, experiment, results)} is the report")


def _work(cells, experiment, options, folder: Path, began: float | None = None) -> None:
    """Takes cells that nobody has taken until none is left or time is up."""
    from cell import name_of, run_cell

    began = time.monotonic() if began is None else began

    def stop() -> bool:
        left = (options.seconds or float("inf")) - (time.monotonic() - began)
        return left < MEASURING

    for cell in cells:
        name = name_of(cell)
        path, claim = folder / "cells" / f"{name}.json", folder / "cells" / f"{name}.claim"
        if _is_done(path) or not _take(claim):
            continue
        if stop():
            claim.unlink(missing_ok=True)
            return
        _say(f"{name} begins")
        training = folder / "training" / name
        result = run_cell(cell, experiment, options.data, training, _progress(name), stop)
        with atomic_write(path) as file:
            json.dump(result, file, indent=1)
        if training.exists() and not result.get("cut"):
            discard(training)
        claim.unlink(missing_ok=True)
        _say(f"{name} is done: {_short(result)}, {result['seconds']:.0f} s")
        collect(folder)


def _is_done(path: Path) -> bool:
    """Whether a cell is there and was not cut short for want of time."""
    return path.exists() and not read_json(path, finite=False).get("cut")


def _take(claim: Path) -> bool:
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _share(options, folder: Path, began: float) -> None:
    """Runs several workers; each takes the cells that are left. Ends them when time is up."""
    command = [sys.executable, str(HERE / "run.py"), *sys.argv[1:], "--worker"]
    share = 0.9 / options.workers
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
    running = [subprocess.Popen(command, env=environment) for _ in range(options.workers)]
    try:
        while any(worker.poll() is None for worker in running):
            if options.seconds and time.monotonic() - began > options.seconds:
                _say("time is up; the same command goes on from here")
                break
            time.sleep(0.5)
    finally:
        for worker in running:
            if worker.poll() is None:
                worker.terminate()
        for worker in running:
            worker.wait()
        for left in (folder / "cells").glob("*.claim"):
            left.unlink(missing_ok=True)
    failed = [worker.returncode for worker in running if worker.returncode not in STOPPED]
    if failed:
        _say(f"{len(failed)} of {len(running)} workers failed; their message is above")


def collect(folder: Path) -> dict:
    """All cells that are done, by name; also writes them to results.json."""
    results = {
        path.stem: read_json(path, finite=False)
        for path in sorted((folder / "cells").glob("*.json"))
    }
    with atomic_write(folder / "results.json") as file:
        json.dump(results, file, indent=1)
    return results


def _short(result: dict) -> str:
    if "linear" in result:
        return f"linear {result['linear']['mse']:.4f}, repeat {result['repeat']['mse']:.4f}"
    mse, mae = result["mse"], result["mae"]
    return f"MSE {sum(mse) / len(mse):.4f}, MAE {sum(mae) / len(mae):.4f}"


def _progress(name: str):
    last = [time.monotonic()]

    def tell(done: int, total: int, text: str) -> None:
        if time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            _say(f"{name} {done}/{total} steps at most  {text}")

    return tell


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    script(lambda: main(parse()))
