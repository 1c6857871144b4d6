"""Presets: which sandwich-norm model, how it is cut, how long it recovers."""

import dataclasses

from pangu_jax.models import presets as models
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.study.language import LanguageExperiment
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Start:
    """One way to initialize the pruned model; the sizes are those of the target for all.

    Attributes:
      clap: removed layers hand their best KV groups to the layer before.
      norm: re-initialization of the RMSNorm gains.
      repair: of the cut projections.
    """

    clap: bool = False
    norm: str = "none"
    repair: str = "none"


STARTS = {
    "plain": Start(),
    "clap": Start(clap=True),
    "slnp": Start(norm="l2"),
    "clap+slnp": Start(clap=True, norm="l2"),
    "clap+slnp-calibrated": Start(clap=True, norm="calibrated"),
    "slnp+ridge": Start(norm="l2", repair="ridge-no-bias"),
    "clap+slnp+ridge": Start(clap=True, norm="l2", repair="ridge-no-bias"),
}


@dataclasses.dataclass(frozen=True)
class Experiment(LanguageExperiment):
    """One comparison of starts for recovery.

    Attributes:
      targets: each layers, and a share of parameters or of single axes.
      starts: names of `STARTS`.
      seeds: each has calibration windows of its own, and its order of windows in the recovery.
      windows: calibration windows of a seed.
      eval_windows: windows measured.
      max_rel_err: layers whose sandwich norms would lose more than this keep them.
    """

    steps: int = 300
    targets: tuple[str, ...] = ("layers=3,params=0.55",)
    starts: tuple[str, ...] = tuple(STARTS)
    seeds: tuple[int, ...] = (0,)
    windows: int = 32
    eval_windows: int = 100
    max_rel_err: float = 0.05


def _sandwich(*sizes: int) -> DecoderConfig:
    cfg = models.byte_model(*sizes)
    layer = dataclasses.replace(cfg.layers[0], norm_place="sandwich")
    return dataclasses.replace(cfg, layers=(layer,) * len(cfg.layers))


PRESETS: dict[str, Experiment] = {
    # About a minute on two CPU cores: shows that everything runs.
    "smoke": Experiment(
        _sandwich(64, 3, 4, 2, 8, 128, 256),
        steps=60,
        targets=("layers=2,params=0.55",),
        starts=("plain", "clap+slnp"),
        windows=8,
        eval_windows=16,
        recover_steps=10,
    ),
    # About an hour on two CPU cores: a 1 M byte model of Python's own source.
    "cpu": Experiment(
        _sandwich(128, 6, 4, 2, 16, 320, 256),
        steps=1500,
        targets=("layers=5,params=0.6",),
        recover_steps=400,
    ),
    # One H100: a 99 M byte model of the source of the packages installed there.
    "gpu": Experiment(
        _sandwich(768, 14, 6, 2, 64, 2304, 2048),
        data="packages",
        steps=3000,
        batch=32,
        length=1024,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        targets=("layers=11,params=0.5",),
        seeds=(0, 1),
        windows=64,
        eval_windows=200,
        recover_steps=1000,
        dtype="bfloat16",
    ),
    # SmolLM2-135M with --checkpoint, a part of WikiText-2 as --data, and --questions; cut in depth
    # and width to 80, 65 and 50 % of the parameters.
    "smollm2": Experiment(
        None,
        length=512,
        targets=("layers=27,params=0.8", "layers=24,params=0.65", "layers=20,params=0.5"),
        starts=("plain", "clap", "slnp", "clap+slnp"),
        seeds=(0, 1, 2),
        recover_steps=200,
        recover_rate=3e-4,
        unroll=1,
    ),
    # The paper prunes a 38 B model that is not public; --checkpoint takes what you have. Never run.
    "paper": Experiment(
        None,
        batch=768,
        length=4096,
        targets=("params=0.84",),
        windows=512,
        recover_steps=30_000,
        recover_rate=1e-4,
        dtype="bfloat16",
    ),
}
