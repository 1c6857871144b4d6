"""Presets: which data sets, horizons and seeds; and the published settings of every cell."""

import dataclasses

from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.train.fit_config import FitConfig

HORIZONS = (96, 192, 336, 720)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained and measured.

    Attributes:
      cells: (data set, horizon, variant), the most telling first; variants: "full" is TimePro,
        "stateless" the same without its state branch, "baselines" the closed-form linear map and
        repeating the last value, "tuned" what is described in tuned.py.
      seeds: every model is trained once a seed, all at once.
      epochs: at most, None for the published number.
      windows: how many training windows are used, None for all.
    """

    cells: tuple[tuple[str, int, str], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    windows: int | None = None


def _setting(horizon, layers, channels, patch, stride, batch, rate, epochs=10):
    model = TimeProConfig(96, horizon, layers, channels, patch, stride)
    return model, FitConfig(batch, rate, epochs)


def _settings() -> dict[tuple[str, int], tuple[TimeProConfig, FitConfig]]:
    """The released scripts' settings: layers, channels, patch, stride, batch, rate."""
    table = {
        ("ETTh1", (96,)): (2, 16, 12, 6, 16, 7e-5),
        ("ETTh1", (192, 336)): (2, 32, 12, 6, 32, 5e-5),
        ("ETTh1", (720,)): (2, 16, 12, 6, 32, 5e-5),
        ("ETTh2", (96,)): (2, 16, 12, 6, 16, 5e-5),
        ("ETTh2", (192, 336)): (1, 16, 6, 3, 16, 5e-5),
        ("ETTh2", (720,)): (1, 32, 24, 12, 16, 5e-5),
        ("ETTm1", (96,)): (1, 32, 12, 6, 16, 5e-5),
        ("ETTm1", (192, 336, 720)): (2, 32, 12, 6, 16, 5e-5),
        ("ETTm2", (96,)): (2, 32, 12, 6, 16, 5e-5),
        ("ETTm2", (192, 336, 720)): (2, 16, 12, 6, 16, 5e-5),
        ("Exchange", (96, 192)): (1, 16, 12, 6, 16, 3e-5),
        ("Exchange", (336,)): (1, 16, 16, 8, 16, 3e-5, 5),
        ("Exchange", (720,)): (1, 16, 8, 4, 16, 2e-4),
        ("Weather", (96,)): (3, 32, 6, 3, 32, 5e-5),
        ("Weather", (192, 336)): (3, 16, 6, 3, 32, 8e-5),
        ("Weather", (720,)): (3, 16, 8, 4, 32, 8e-5),
        ("Solar", (96, 336, 720)): (2, 48, 8, 4, 16, 5e-5),
        ("Solar", (192,)): (2, 64, 8, 4, 16, 5e-5),
        ("ECL", (96,)): (2, 32, 8, 4, 16, 5e-4),
        ("ECL", (192, 336)): (2, 32, 8, 4, 16, 3e-4),
        ("ECL", (720,)): (2, 32, 12, 6, 16, 3e-4),
    }
    return {
        (name, horizon): _setting(horizon, *numbers)
        for (name, horizons), numbers in table.items()
        for horizon in horizons
    }


SETTINGS = _settings()

# Table 2 of the paper, read off the image in its repository: mean over the four horizons, MSE/MAE.
PUBLISHED_MEAN = {
    "ECL": (0.169, 0.262),
    "Exchange": (0.352, 0.399),
    "Weather": (0.251, 0.276),
    "Solar": (0.232, 0.266),
    "ETTm1": (0.391, 0.400),
    "ETTm2": (0.281, 0.326),
    "ETTh1": (0.438, 0.438),
    "ETTh2": (0.377, 0.403),
}

SIX = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange")


def _cells(names, horizons, variants):
    return tuple((n, h, v) for h in horizons for n in names for v in variants)


# Where a linear map is furthest behind first: these say most about the model. The largest model,
# Weather-96, takes as long as all ETTh together and comes later.
_ORDER = ("ETTm1", "Weather", "ETTm2", "ETTh1", "ETTh2", "Exchange")
_MODELS = ("full", "stateless")
_FIRST = (
    *_cells(("ETTm1",), (96,), _MODELS),
    *_cells(("Weather",), (192,), _MODELS),
    *_cells(("ETTm2", "ETTh1", "ETTh2", "Exchange"), (96,), _MODELS),
)
_REST = tuple(c for c in _cells(_ORDER, (192, 96, 336, 720), _MODELS) if c not in _FIRST)

PRESETS: dict[str, Experiment] = {
    # Under a minute on two CPU cores: shows that everything runs, and nothing else.
    "smoke": Experiment(
        _cells(("ETTh1",), (96,), ("baselines", "full", "stateless")),
        seeds=(0,),
        epochs=1,
        windows=640,
    ),
    # About half an hour on two quiet CPU cores.
    "cpu": Experiment(_cells(("ETTh1",), (96,), ("baselines", "full", "stateless"))),
    # Baselines alone, of all six data sets: minutes on two CPU cores.
    "baselines": Experiment(_cells(SIX, HORIZONS, ("baselines",))),
    # The six data sets that are easy to get, for one GPU.
    "gpu": Experiment((*_FIRST, *_REST, *_cells(_ORDER, HORIZONS, ("baselines",)))),
    # The whole table; ECL and Solar have to be brought along.
    "paper": Experiment(
        _cells((*_ORDER, "ECL", "Solar"), HORIZONS, ("full", "stateless", "baselines"))
    ),
    # Beyond the paper, chosen on validation data: see tuned.py.
    "tuned": Experiment(_cells(SIX, HORIZONS, ("baselines", "tuned"))),
}
