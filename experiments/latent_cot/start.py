"""What all methods of a plan begin with: problems, and a model from scratch or a checkpoint."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.latent_cot.budget import kept
from experiments.latent_cot.config import Plan
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.data.prosqa import larger
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.data.word_tokenizer import files_with_tokens
from pangu_jax.models import presets
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.task import (
    SYMBOLS,
    Ids,
    Task,
    encode_task,
    located,
    names_of,
    read_task,
    words_of,
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Problems and a model.

    Attributes:
      ids: the task's problems.
      model: the decoder.
      longest: tokens of the longest chain and answer, also of problems too long to be trained on.
      params: of a checkpoint; None draws them.
      larger: the share of test questions that `data.prosqa.larger` answers; None of other tasks.
    """

    ids: Ids
    model: DecoderConfig
    longest: int
    params: Any = None
    larger: float | None = None


def begin_with(plan: Plan, seed: int, data: str | None, model: str | None, plans: int) -> Start:
    """The problems, and the model.

    Args:
      plan: the plan.
      seed: of drawn problems, all of whose words get a token.
      data: the folder with the files of tasks.
      model: a checkpoint, with its tokenizer; None is the plan's preset.
      plans: how many planning tokens there are.
    """
    test = str(Path(data) / plan.test_file) if data and plan.test_file else None
    name, test = located(plan.task, test, data)
    task = read_task(
        name,
        test=test,
        problems=plan.problems,
        tests=plan.tests,
        seed=seed,
        workers=os.cpu_count() or 1,
    )
    if model is not None:
        return _from_checkpoint(plan, task, model, plans)
    ids = encode_task(task, words_of(task, plans), plans)
    cfg = presets.preset(plan.model, vocab=-(-ids.vocab // 8) * 8)
    found = None
    if plan.task == SYMBOLS:
        found = float(np.mean([larger(problem) == problem.answer for problem in task.testing]))
    return Start(ids, cfg, ids.longest, larger=found)


def _from_checkpoint(plan: Plan, task: Task, model: str, plans: int) -> Start:
    params, cfg, found = open_checkpoint(model, kind="decoder", by="run.py", dtype="float32")
    latent.check_model(cfg)
    tokenizer, names = load_tokenizer(found, checkpoint=model), names_of(plans)
    own = isinstance(tokenizer, ByteTokenizer)
    ids = encode_task(task, {} if own else files_with_tokens(tokenizer, names), plans)
    new = names if own else [name for name in names if tokenizer.token_to_id(name) is None]
    params, cfg = latent.with_rows(params, cfg, ids.of(new), ids.vocab)
    short = dataclasses.replace(ids, training=kept(ids.training, plan.longest, planned=plans > 0))
    return Start(short, cfg, ids.longest, jax.tree.map(np.asarray, params))
