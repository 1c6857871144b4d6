"""What a task that reads a checkpoint works on, and how it opens it."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.task.model import Model
from pangu_jax.task.watch import Watch

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Job(Generic[Asked]):
    """A checkpoint, and what is to be done with it.

    Attributes:
      checkpoint: the folder that the model was read from.
      options: what was asked for.
      watch: what is told on the way.
    """

    checkpoint: str
    options: Asked
    watch: Watch


def open_job(
    job: Job,
    model: Model | None,
    *,
    kind: str | tuple[str, ...],
    by: str,
    dtype: str | None = None,
) -> tuple[Any, Any, str]:
    """Opens a job's checkpoint as `open_checkpoint` does, unless the model was read before.

    Args:
      job: names the folder.
      model: what the folder holds, if it was read before.
      kind: kinds of models that are taken, as `open_checkpoint` checks them.
      by: what takes them, for the message.
      dtype: type of the parameters; None keeps what there is.

    Returns:
      The parameters, the configuration, and where the tokenizer is.

    Raises:
      InputError: there is no such model.
    """
    if model is None:
        with job.watch.working(f"reading {job.checkpoint}"):
            return open_checkpoint(job.checkpoint, kind=kind, by=by, dtype=dtype)
    params = model.params
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    return params, model.cfg, job.checkpoint
