"""Experiments on one dense language model: it is trained or opened, pruned, and recovered.

Training, calibration and measurement use separate documents. Cells are shared by workers
(`study.workers`) where a checkpoint is opened; what is trained here has one process.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.multiple_choice import Question, questions
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document, documents, split_documents, take
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.eval.multiple_choice import choice_accuracy
from pangu_jax.eval.perplexity import measure_windows
from pangu_jax.models import decoder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import Result, compress
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.stats import SweepConfig, moments_type
from pangu_jax.train.distill import distill_loss
from pangu_jax.train.language import train_language
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer, schedule
from pangu_jax.train.optimizer_config import OptimizerConfig

TRAINING = 200_000_000  # characters of text that are trained on at most
MEASURED = 8  # windows that must be left to measure on, at least
# Steps of a recovery that is made again when it was stopped: writing its state takes longer.
BRIEF = 200


@dataclasses.dataclass(frozen=True)
class LanguageExperiment:
    """Settings shared by experiments on one dense model; each adds its own fields.

    Attributes:
      model: trained from scratch on `data`; None takes --checkpoint.
      data: text to train on, calibrate on and measure on, each its own documents; with a
        checkpoint, to calibrate and measure on.
      held_out: share of the documents that are calibrated and measured on, not trained on.
      steps: optimizer steps of the model's training.
      batch: windows per training step.
      length: tokens per training window.
      optimizer: of the training.
      recover_steps: distillation steps of a recovery.
      recover_rate: learning rate of the distillation.
      dtype: type of the activations.
      unroll: layers per turn of the loop over them (`How.unroll`); 1 compiles fastest, for models
        that differ from cell to cell. None is the library's choice.
    """

    model: DecoderConfig | None
    data: str = "stdlib"
    held_out: float = 0.1
    steps: int = 200
    batch: int = 8
    length: int = 128
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3)
    recover_steps: int = 200
    recover_rate: float = 5e-4
    dtype: str = "float32"
    unroll: int | None = None

    @property
    def how(self) -> How:
        """The options of every call: the type of activations, and how layers are looped over."""
        return How(dtype=self.dtype, unroll=self.unroll)

    @property
    def brief(self) -> bool:
        """Whether a recovery is so short that it is made again when it was stopped."""
        return self.recover_steps <= BRIEF

    @property
    def recover_tokens(self) -> int:
        """Tokens that a recovery sees."""
        return self.recover_steps * self.batch * self.length


@dataclasses.dataclass(frozen=True)
class Base:
    """The dense model, and its text.

    Attributes:
      experiment: the settings.
      folder: of the run.
      params: the dense model.
      cfg: its configuration.
      tokenizer: its tokenizer.
      training: windows to train and recover on.
      kept: documents that are held out of the training.
    """

    experiment: Any
    folder: Path
    params: Any
    cfg: DecoderConfig
    tokenizer: Tokenizer
    training: PackedTokens
    kept: list[Document]


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, which `open_base` reads, and --dtype, which replaces the preset's."""
    parser.add_argument("--checkpoint", help="a dense checkpoint instead of training one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type of the activations; the preset's if left out",
    )


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Adds --questions, which `open_questions` reads."""
    parser.add_argument("--questions", nargs="+", help="files of questions with choices to ask")


def check_workers(options: argparse.Namespace) -> None:
    """Refuses several workers for a model that is trained here, as one process trains it.

    Raises:
      InputError: there are, and no --checkpoint.
    """
    if options.workers > 1 and options.checkpoint is None:
        raise InputError("--workers needs --checkpoint: what is trained here has one process")


def open_questions(files: Sequence[str] | None) -> dict[str, list[Question]]:
    """Questions by their file's name up to its first dot.

    Raises:
      InputError: a file cannot be read, or is of another form.
    """
    paths = [Path(name) for name in files or ()]
    return {path.name.split(".")[0]: questions(path) for path in paths}


def open_base(
    experiment: LanguageExperiment,
    folder: Path,
    options: argparse.Namespace,
    *,
    dtype: str | None = None,
) -> Base:
    """Opens --checkpoint, or trains the experiment's model in base/, resuming an earlier training.

    Args:
      experiment: the settings.
      folder: of the run.
      options: the preset's name and the checkpoint.
      dtype: type of a checkpoint's parameters; None keeps what is stored.

    Raises:
      InputError: neither a model nor a checkpoint, or no usable text.
      Stopped: a signal came; the training is saved.
    """
    if experiment.model is None and options.checkpoint is None:
        raise InputError(f"the preset {options.preset} needs --checkpoint")
    params, cfg, tokens = None, experiment.model, "bytes"
    if options.checkpoint is not None:
        params, cfg, tokens = open_checkpoint(
            options.checkpoint, kind="decoder", by="this experiment", dtype=dtype
        )
    tokenizer = load_tokenizer(tokens)
    training, kept = split_documents(documents(experiment.data), experiment.held_out, halve=True)
    source = PackedTokens(tokenize(take(training, TRAINING), tokenizer), experiment.length)
    if params is None:
        params = train_language(
            cfg,
            lambda step: drawn_batches(source, batch=experiment.batch, start_step=step),
            folder / "base",
            loop=LoopConfig(experiment.steps, checkpoint_every=500, keep=1),
            optimizer=experiment.optimizer,
            label="base",
            documents=source.most_documents,
            how=experiment.how,
        )
    return Base(experiment, folder, params, cfg, tokenizer, source, kept)


def kept_windows(base: Base, length: int, needed: int, *, size: int = 2_000_000) -> np.ndarray:
    """Windows of the held-out text, int32 [windows, length].

    Args:
      base: the model and its text.
      length: tokens of a window.
      needed: windows for calibration, which are not measured.
      size: characters of text that suffice.

    Raises:
      InputError: the text does not fill these and some more to measure on.
    """
    found = cut_windows(tokenize(take(base.kept, size), base.tokenizer), length)
    if len(found) < needed + MEASURED:
        raise InputError(
            f"the held-out text fills {len(found)} windows of {length} tokens, "
            f"{needed} are for calibration and more to measure on; give more text"
        )
    return found


def perplexity(base: Base, params: Any, cfg: DecoderConfig, windows: np.ndarray) -> float:
    """Perplexity on windows, int32 [windows, T], with the experiment's activation dtype."""
    return measure_windows(params, windows, cfg=cfg, how=base.experiment.how).perplexity


def ask(
    base: Base, asked: dict[str, list[Question]], params: Any, cfg: DecoderConfig
) -> dict[str, float]:
    """A model's length-normalized accuracy of every set, and what guessing gives there.

    Returns:
      {"NAME_accuracy", "NAME_chance"} for every name.
    """
    found = {}
    for name, of_set in asked.items():
        score = choice_accuracy(
            *(params, of_set),
            cfg=cfg,
            tokenizer=base.tokenizer,
            batch=128,
            how=base.experiment.how,
        )
        found[f"{name}_accuracy"] = score.normalized
        found[f"{name}_chance"] = score.chance
    return found


def prune(base: Base, windows: np.ndarray, target: str, recipe: Recipe) -> Result:
    """Prunes the dense model to exactly the target's size, without rounding for hardware."""
    return compress(
        base.params,
        windows,
        cfg=base.cfg,
        target=parse(target),
        recipe=recipe,
        limits=Limits(multiple=1),
        sweep_cfg=SweepConfig(moments=moments_type(base.cfg)),
        how=base.experiment.how,
    )


def recover(
    base: Base,
    found: Result,
    folder: Path | None,
    *,
    label: str,
    seed: int = 0,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Distills a pruned model from the dense one; returns its parameters.

    Args:
      base: the dense model, and the text it was trained on.
      found: the pruned model.
      folder: of the training, which goes on there; None keeps nothing.
      label: prefix of the progress lines.
      seed: of the order of windows.
      evaluate: called with the parameters five times on the way; figures go to the metrics.
      on_metrics: called with every line of metrics, those from before it was stopped first.

    Raises:
      Stopped: a signal came, and a folder was given; the training is saved.
    """
    experiment = base.experiment
    steps = experiment.recover_steps
    loss, optimizer, rates = _distilling(
        *(base.cfg, found.cfg, experiment.how, experiment.recover_rate, steps)
    )
    state = train(
        loss,
        decoder.spec(found.cfg),
        lambda step: drawn_batches(
            base.training, batch=experiment.batch, seed=1 + seed, start_step=step
        ),
        cfg=LoopConfig(
            steps,
            checkpoint_every=500,
            keep=1,
            evaluate_every=max(1, steps // 5) if evaluate else 0,
        ),
        optimizer=optimizer,
        schedule=rates,
        folder=folder,
        params=jax.tree.map(lambda x: x.astype(jnp.float32), found.params),
        evaluate=evaluate,
        label=label,
        on_metrics=on_metrics,
        frozen=base.params,
    )
    return state.params


@lru_cache(maxsize=8)
def _distilling(teacher: DecoderConfig, cfg: DecoderConfig, how: How, rate: float, steps: int):
    """Loss, optimizer and schedule: recoveries of equal sizes share them and their compilation."""
    optimizer = OptimizerConfig(learning_rate=rate, weight_decay=0.0)
    return (
        distill_loss(teacher, cfg, how=how),
        make_optimizer(optimizer, steps),
        schedule(optimizer, steps),
    )
