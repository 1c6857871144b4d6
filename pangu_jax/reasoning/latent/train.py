"""Training of a latent method: its phases, one after another, in one run that resumes."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.checkpoint.store import latest_step
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim
from pangu_jax.models import decoder, registry
from pangu_jax.models.thinker import ThinkerConfig
from pangu_jax.nn.how import HOW, How, in_training
from pangu_jax.reasoning.latent.batches import longest_chain, phase_batches, widths
from pangu_jax.reasoning.latent.config import OPTIMIZER, MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig, Phase
from pangu_jax.reasoning.latent.registry import method as find_method
from pangu_jax.reasoning.latent.slots import Encoded, Markers
from pangu_jax.train.loop import train_stages
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.stages import Stage
from pangu_jax.train.step import TrainState

RUN = "latent.json"

# Layers that a training step on a GPU applies in a row, of models that have no more; a thought is
# one more pass through all. Each form of a batch is compiled for itself, so models with more keep
# their loops, which compile sooner. Where the line is best drawn was not measured.
UNROLLED = 12


@dataclasses.dataclass(frozen=True)
class Trained:
    """Metadata that `latent train` writes to latent.json.

    Attributes:
      method: a name of `registry.METHODS`.
      phase: the last one, in whose form questions are put.
      task: the task that it was trained on.
      test: the file of problems to measure on; None for the task's own.
      tests: most problems to measure on.
      steps: of the whole curriculum; a run that was stopped has done fewer.
      max_new_tokens: most tokens that an answer of the task has, chain included.
      tokenizer: digest of the tokenizer; None in files that were written before there was one.
      longest_question: tokens of the longest question to train or measure on; None in files that
        were written before there was one.

    Raises:
      InputError: numbers out of range.
    """

    method: str
    phase: Phase
    task: str
    test: str | None
    tests: int
    steps: int
    max_new_tokens: int
    tokenizer: str | None = None
    longest_question: int | None = None

    def __post_init__(self):
        for name in ("tests", "steps", "max_new_tokens"):
            check_size(name, getattr(self, name))


def reached(run: str | Path, trained: Trained) -> int:
    """The step of a run's last checkpoint; a warning tells if it is not the curriculum's last.

    Args:
      run: a folder that `latent train` wrote.
      trained: what it says of its model.
    """
    step = latest_step(run) or 0
    if step < trained.steps:
        logging.getLogger(__name__).warning(
            "%s stopped at step %s of %s; its answers are in the form of the last stage, in which "
            "it was trained too little or not at all", run, f"{step:,}", f"{trained.steps:,}"
        )  # fmt: skip
    return step


def check_tokenizer(run: str | Path, trained: Trained, digest: str, name: str) -> None:
    """Checks that a tokenizer is the one that a run was trained with.

    Args:
      run: a folder that `latent train` wrote.
      trained: what it says of its model.
      digest: of the tokenizer.
      name: of the tokenizer, for the error.

    Raises:
      InputError: it is another.
    """
    if trained.tokenizer not in (None, digest):
        raise InputError(
            f"{name} is not the tokenizer that {run} was trained with: its digest is "
            f"{digest:.12}, that in {RUN} is {trained.tokenizer:.12}"
        )


def plan(name: str, problems: Sequence[Encoded], curriculum: CurriculumConfig) -> tuple[Phase, ...]:
    """The phases of a method on problems."""
    return find_method(name).phases(curriculum, longest_chain(problems))


def train(
    problems: Sequence[Encoded],
    phases: Sequence[Phase],
    *,
    method: str,
    markers: Markers,
    model: decoder.DecoderConfig | ThinkerConfig,
    loop: LoopConfig,
    batch: int,
    own: MethodConfig = MethodConfig(),
    optimizer: OptimizerConfig = OPTIMIZER,
    params: Any = None,
    folder: str | Path | Claim | None = None,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
    label: str | None = "train",
    how: How = HOW,
) -> TrainState:
    """Trains a model, or resumes from the last checkpoint in `folder`.

    Args:
      problems: problems to train on.
      phases: of `plan`.
      method: a name of `registry.METHODS`.
      markers: of the tokenizer.
      model: the method's model (`Method.model`) of a decoder without experts.
      loop: length, which is that of the phases, and checkpoints.
      batch: rows of a step.
      own: numbers of single methods.
      optimizer: AdamW and its schedule. Every phase begins with a fresh state, and its rate rises
        and falls over shares of the phase's own steps, as if the run were of that phase alone.
      params: float32 parameters to start from, whose buffers the training takes over; None draws
        them.
      folder: as in `train.loop.train`.
      evaluate: as in `train.loop.train`.
      label: as in `train.loop.train`.
      how: implementations, type of activations, and what backward recomputes.

    Returns:
      The state after the last step.

    Raises:
      InputError: experts or dropout, which these methods do not train; windows where a chain keeps
        its position; ids outside the vocabulary; and as in `train.loop.train_stages`.
      Stopped: as in `train.loop.train_stages`.
    """
    check_size("batch", batch)
    plain = model.decoder if isinstance(model, ThinkerConfig) else model
    check_model(plain)
    check_room(plain, phases)
    check_ids(problems, markers, plain)
    chosen = find_method(method)
    columns = widths(problems, chosen, phases, markers)
    layers = len(plain.layers) * (model.turns if isinstance(model, ThinkerConfig) else 1)
    if layers <= UNROLLED:
        how = in_training(how, UNROLLED)
    # An object of its own gives a phase a fresh state; phases of one length share it, and so the
    # compiled step.
    of_length = {n: make_optimizer(optimizer, n) for n in {phase.steps for phase in phases}}
    stages = []
    for index, (phase, width) in enumerate(zip(phases, columns, strict=True)):
        loss = chosen.loss(
            model,
            start=width.start,
            thoughts=width.thoughts,
            feedback=chosen.feedback,
            own=own,
            how=how,
        )
        stream = partial(
            phase_batches,
            problems,
            chosen,
            phase,
            markers,
            width,
            batch=batch,
            seed=(loop.seeds[0], index),
        )
        tuned = of_length[phase.steps]
        stages.append(Stage(phase.steps, loss, lambda step, run=stream: run(step=step), tuned))
    return train_stages(
        stages,
        registry.spec(model),
        cfg=loop,
        folder=folder,
        params=params,
        evaluate=evaluate,
        unit="tokens" if chosen.teacher is None else "problems",
        label=label,
    )


def check_model(cfg: decoder.DecoderConfig) -> None:
    """Raises InputError for a decoder that latent methods do not train."""
    if any(layer.moe is not None for layer in cfg.layers):
        raise InputError("latent methods train dense decoders; this one has experts")
    if any(layer.dropout for layer in cfg.layers):
        raise InputError("latent methods train without dropout; this decoder has some")


def check_room(cfg: decoder.DecoderConfig, phases: Sequence[Phase]) -> None:
    """Raises InputError for windows where positions stay free: decoding does not count those."""
    windows = any(layer.attention.window for layer in cfg.layers)
    if windows and any(phase.chain_room for phase in phases):
        raise InputError("keep_position is for models without windows; this decoder has some")


def check_ids(problems: Sequence[Encoded], markers: Markers, cfg: decoder.DecoderConfig) -> None:
    """Raises InputError if an id is outside the model's vocabulary, or a problem is empty."""
    if not problems:
        raise InputError("there are no problems to train on")
    most = max(dataclasses.astuple(markers))
    for problem in problems:
        if not problem.question or not problem.answer:
            raise InputError("a problem has an empty question or answer")
        most = max(most, *problem.question, *problem.answer, *map(max, filter(None, problem.steps)))
    if most >= cfg.vocab:
        raise InputError(f"the tokenizer gives the id {most}, the model's ends at {cfg.vocab - 1}")


def with_rows(
    params: dict[str, Any], cfg: decoder.DecoderConfig, new: Sequence[int], vocab: int
) -> tuple[dict[str, Any], decoder.DecoderConfig]:
    """Extends a model's vocabulary by the markers.

    Args:
      params: tree of `decoder.spec(cfg)`.
      cfg: the model.
      new: ids of the markers that the tokenizer did not have before: their rows become the mean of
        all former rows, so that no input or output stands out. Others keep their trained rows.
      vocab: number of ids needed; the vocabulary grows to the next multiple of 8 if it has fewer.

    Returns:
      The parameters and the configuration.
    """
    size = cfg.vocab if vocab <= cfg.vocab else -(-vocab // 8) * 8
    places = jnp.asarray(new, jnp.int32)

    def grown(rows: jax.Array) -> jax.Array:
        mean = rows.astype(jnp.float32).mean(0).astype(rows.dtype)
        return (
            jnp.concatenate([rows, jnp.broadcast_to(mean, (size - len(rows), len(mean)))])
            .at[places]
            .set(mean)
        )

    found = {**params, "embed": {"table": grown(params["embed"]["table"])}}
    if "head" in params:
        found["head"] = {"kernel": grown(params["head"]["kernel"].T).T}
    return found, dataclasses.replace(cfg, vocab=size)
