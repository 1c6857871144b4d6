"""What options change of a preset, and where a run goes."""

import dataclasses
from pathlib import Path

import pytest

from pangu_jax.study import options


@dataclasses.dataclass(frozen=True)
class Experiment:
    data: str = "stdlib"
    seeds: tuple[int, ...] = (0,)
    steps: int = 5


PRESETS = {"smoke": Experiment(), "gpu": Experiment(steps=50)}


def read(*words):
    parser = options.parser("What it is.\n\nMore.", PRESETS, seeds="the preset's")
    parser.add_argument("--steps", type=options.positive)
    parser.add_argument("--checkpoint")
    return options.chosen(parser.parse_args(words), PRESETS, "mine")


def test_options_replace_the_fields_of_their_names():
    assert read() == (Experiment(), Path("runs/mine-smoke"))
    words = ("--preset", "gpu", "--data", "x", "--seeds", "1", "2", "--out", "here")
    assert read(*words, "--checkpoint", "c") == (Experiment("x", (1, 2), 50), Path("here"))
    assert read("--preset", "gpu", "--steps", "7")[0].steps == 7


@pytest.mark.parametrize(
    "words", [("--preset", "none"), ("--steps", "0"), ("--steps", "-1"), ("--seeds", "0", "-1")]
)
def test_what_makes_no_sense_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        read(*words)
    assert end.value.code == 2 and words[-1] in capsys.readouterr().err
