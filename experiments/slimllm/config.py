"""Presets: which model, which text, what is cut, how it is recovered."""

import dataclasses

from pangu_jax.models import presets as models
from pangu_jax.study.language import LanguageExperiment
from pangu_jax.train.optimizer_config import OptimizerConfig

# What each method is in its own paper, then each with the repair that is ours: (method, repair).
OWN = (
    ("slimllm", "affine"),
    ("flap", "bias"),
    ("wanda-sp", "none"),
    ("minitron", "none"),
    ("taylor", "none"),
    ("magnitude", "none"),
    ("random", "none"),
)
RIDGE = tuple((method, "ridge") for method, _ in OWN)


@dataclasses.dataclass(frozen=True)
class Experiment(LanguageExperiment):
    """One comparison of pruning methods on one model.

    Attributes:
      targets: what is left, one model each, as `pangu-jax prune --target` has it.
      methods: (method, repair) pairs.
      draws: numbers of calibration draws; each takes windows of its own.
      windows: calibration windows of a draw.
      window_length: tokens of a calibration window.
      eval_windows: windows measured, whatever the length.
      eval_lengths: context lengths of the perplexity.
      recover: targets at which every model is recovered, for equal tokens.
      recover_draws: the first so many draws are.
      latency: (batch, length) of the prefill that is timed.
    """

    targets: tuple[str, ...] = ("params=0.8", "params=0.65", "params=0.5")
    methods: tuple[tuple[str, str], ...] = OWN + RIDGE
    draws: int = 3
    windows: int = 32
    window_length: int = 128
    eval_windows: int = 40
    eval_lengths: tuple[int, ...] = (128, 512)
    recover: tuple[str, ...] = ("params=0.5",)
    recover_draws: int = 1
    latency: tuple[int, int] = (4, 256)


PRESETS: dict[str, Experiment] = {
    # About a minute on two CPU cores: shows that everything runs.
    "smoke": Experiment(
        models.byte_model(64, 3, 4, 2, 8, 128, 256),
        steps=60,
        targets=("params=0.7",),
        methods=(("slimllm", "ridge"), ("slimllm", "affine"), ("magnitude", "none")),
        draws=1,
        windows=8,
        eval_windows=8,
        eval_lengths=(64, 128),
        recover=("params=0.7",),
        recover_steps=10,
        latency=(2, 64),
    ),
    # stories260K with --checkpoint and --data tinystories.txt: half an hour on two cores.
    "cpu": Experiment(
        None,
        targets=("ffn=0.8", "ffn=0.5", "groups=0.75", "params=0.8", "params=0.65", "params=0.5"),
        eval_lengths=(128, 512),
        recover_steps=300,
    ),
    # One H100: a 99 M byte model of the source of the packages installed there.
    "gpu": Experiment(
        models.byte_model(768, 14, 6, 2, 64, 2304, 2048),
        data="packages",
        steps=3000,
        batch=32,
        length=1024,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        windows=128,
        window_length=512,
        eval_windows=200,
        eval_lengths=(256, 1024),
        recover_steps=1000,
        latency=(8, 2048),
        dtype="bfloat16",
    ),
    # SmolLM2-135M with --checkpoint, WikiText-2's parts as --data and --other, and --questions.
    "smollm2": Experiment(
        None,
        length=512,
        window_length=128,
        eval_windows=400,
        eval_lengths=(128, 512),
        recover=("params=0.8", "params=0.65", "params=0.5"),
        recover_draws=3,
        recover_steps=200,
        recover_rate=3e-4,
        latency=(8, 512),
        unroll=1,
    ),
    # LLaMA-7B with --checkpoint and BookCorpus as --data. Nobody has run this preset.
    "paper": Experiment(
        None,
        targets=("params=0.8", "params=0.5"),
        draws=1,
        eval_windows=1000,
        eval_lengths=(128, 2048),
        recover_steps=6000,
        latency=(1, 2048),
        dtype="bfloat16",
    ),
}
