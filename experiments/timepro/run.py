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
meanwhile. Where --seconds is up, a training is cut at the end of an epoch, measured, marked, and
gone on with the next time. results.json and report.md are made from those files after every cell.
Not reproduced: the paper's memory and speed figures, which are of another GPU; and what ECL and
Solar give, unless their files are brought along.
"""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

from experiments.timepro.config import PRESETS, Experiment
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.study import options as common
from pangu_jax.study.cells import say
from pangu_jax.study.workers import Makes, begin, collect, is_done, run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = common.parser(__doc__, PRESETS, data=None, workers=True)
    parser.add_argument("--data", required=True, help="the folder that holds the data sets' files")
    parser.add_argument("--only", nargs="*", help="data sets; default all of the preset")
    parser.add_argument("--variants", nargs="*", help="variants; default all of the preset")
    parser.add_argument("--horizons", nargs="*", type=int, help="default all of the preset")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    parser.add_argument("--no-report", action="store_true", help="only run cells (no matplotlib)")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Runs every cell that is not done yet, then writes the report."""
    began = time.monotonic()
    experiment, folder = common.chosen(options, PRESETS, "timepro")
    cells = [
        cell
        for cell in experiment.cells
        if (not options.only or cell[0] in options.only)
        and (not options.horizons or cell[1] in options.horizons)
        and (not options.variants or cell[2] in options.variants)
    ]
    if not cells:
        raise InputError("no cell of the preset is of those data sets, horizons and variants")
    settings = to_json(dataclasses.replace(experiment, cells=()))
    if options.report:
        begin(folder, settings)
        results = collect(folder)
    else:
        makes = partial(_makes, cells, experiment, options.data)
        module = "experiments.timepro.run"
        results = run(folder, settings, module, options, makes, shown=_short)
    if results is None:
        return
    done = sum(is_done(folder, name_of(cell)) for cell in cells)
    say(f"{done} of {len(cells)} cells are done, {time.monotonic() - began:.0f} s")
    if not options.no_report:
        from experiments.timepro.report import write_report  # here, as it needs matplotlib

        say(f"{write_report(folder, experiment, results)} is the report")


def name_of(cell: tuple[str, int, str]) -> str:
    return "-".join(map(str, cell))


def _makes(cells, experiment: Experiment, data: str) -> Makes:
    from experiments.timepro.cell import run_cell

    def make(cell, training: Path, stop):
        return run_cell(cell, experiment, data, training, _progress(name_of(cell)), stop)

    return {name_of(cell): partial(make, cell) for cell in cells}


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
            say(f"{name} {done}/{total} steps at most  {text}")

    return tell


if __name__ == "__main__":
    script(lambda: main(parse()))
