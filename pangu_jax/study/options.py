"""The options that experiments share: --preset, --data, --out, and --seeds and others of some.

parser = options.parser(__doc__, PRESETS, seeds="the preset's if left out")
parser.add_argument("--steps", type=options.positive)       # overrides the field of that name
given = parser.parse_args()
experiment, folder = options.chosen(given, PRESETS, "my_paper")
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT = "a file or folder of text; the preset's if left out"


def parser(
    doc: str,
    presets: Mapping[str, Any],
    *,
    default: str = "smoke",
    data: str | None = TEXT,
    seeds: str | None = None,
    minutes: str | None = None,
    workers: bool = False,
) -> argparse.ArgumentParser:
    """A parser that knows the common options; an experiment adds its own.

    It is argparse's, so that an experiment runs where a machine has no command line library.

    Args:
      doc: the docstring of the experiment, whose first line describes it.
      presets: the experiments by name.
      default: the preset used if none is named.
      data: the help of --data; None leaves --data to the experiment.
      seeds: the help of --seeds; None leaves it out.
      minutes: the help of --minutes; None leaves it out.
      workers: whether cells can be shared by several processes (`study.workers`): adds --workers,
        --gpus, --seconds, and --worker, with which those processes are started.
    """
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--preset", default=default, choices=presets)
    if data is not None:
        found.add_argument("--data", help=data)
    found.add_argument("--out", help="the run's folder; runs/<experiment>-<preset> if left out")
    if seeds is not None:
        found.add_argument("--seeds", nargs="+", type=natural, help=seeds)
    if minutes is not None:
        found.add_argument("--minutes", type=float, help=minutes)
    if workers:
        found.add_argument("--workers", type=positive, default=1, help="processes that share cells")
        found.add_argument("--gpus", type=positive, default=1, help="GPUs they are spread over")
        found.add_argument(
            "--seconds",
            type=float,
            help="after so long everything has ended, to be gone on with by the same command",
        )
        found.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return found


def natural(text: str) -> int:
    """An integer of at least 0, as a `type` of argparse.

    Raises:
      ArgumentTypeError: it is not one.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 0")
    return int(text)


def positive(text: str) -> int:
    """An integer of at least 1, as a `type` of argparse.

    Raises:
      ArgumentTypeError: it is not one.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return int(text)


def chosen(options: argparse.Namespace, presets: Mapping[str, Any], name: str) -> tuple[Any, Path]:
    """The preset with the options' changes, and the run's folder.

    Args:
      options: the parsed options; each that is not None replaces the field of its name.
      presets: the experiments, frozen dataclasses, by name.
      name: of the experiment, for the folder.
    """
    experiment = presets[options.preset]
    given = vars(options)
    changes = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(experiment)
        if (value := given.get(field.name)) is not None
    }
    folder = Path(options.out or f"runs/{name}-{options.preset}")
    return dataclasses.replace(experiment, **changes), folder
