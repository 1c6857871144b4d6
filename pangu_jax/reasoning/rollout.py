"""The answers of groups, and the batch that an update is made from."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from pangu_jax.decode.engine import Answer, round_up
from pangu_jax.losses.policy import advantages


@dataclasses.dataclass
class Rollout:
    """Answers and rewards collected so far for one group.

    Attributes:
      prompt: ids.
      question: its number.
      answers: of the samples that have ended.
      rewards: float [samples]; NaN where an answer has none.
    """

    prompt: Sequence[int]
    question: int
    answers: dict[int, Answer] = dataclasses.field(default_factory=dict)
    rewards: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """The inputs of one update.

    Attributes:
      arrays: inputs of `train.policy.answer_loss`; B is groups times samples.
      facts: plain numbers about it.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, float]


def make_batch(
    rollouts: Sequence[Rollout],
    *,
    divide_by_std: bool = True,
    oldest: int | None = None,
    mask_truncated: bool = False,
) -> Batch:
    """Builds rows of prompt and answer, padded to one rounded-up length.

    Args:
      rollouts: groups with rewards.
      divide_by_std: the advantages, see `losses.policy.advantages`.
      oldest: tokens of weights older than this version are masked; None masks none.
      mask_truncated: whether answers that were cut off are masked.
    """
    rows = [(g.prompt, g.answers[i]) for g in rollouts for i in sorted(g.answers)]
    rewards = np.stack([np.asarray(group.rewards, np.float32) for group in rollouts])
    usable = ~np.isnan(rewards)
    gain, counts = map(np.asarray, _advantages(rewards, usable, divide_by_std=divide_by_std))
    length = round_up(max(len(prompt) + len(answer.ids) for prompt, answer in rows) - 1)
    whole = {name: np.zeros((len(rows), length), np.int32) for name in _IDS}
    whole |= {name: np.zeros((len(rows), length), np.float32) for name in ("behavior", "mask")}
    stale = 0
    for row, (prompt, answer) in enumerate(rows):
        ids = np.concatenate([np.asarray(prompt, np.int32), answer.ids])
        known, first = len(ids) - 1, len(prompt) - 1
        whole["tokens"][row, :known], whole["labels"][row, :known] = ids[:-1], ids[1:]
        whole["segments"][row, :known] = 1
        whole["behavior"][row, first:known] = answer.sampled_log_probs
        fresh = answer.versions >= (0 if oldest is None else oldest)
        cut = mask_truncated and answer.finish_reason == "length"
        whole["mask"][row, first:known] = fresh * counts.reshape(-1)[row] * (not cut)
        stale += int((~fresh).sum())
    facts = {
        "reward": float(rewards[usable].mean()) if usable.any() else 0.0,
        "unusable": float((~usable).mean()),
        "masked_groups": float((~counts.any(-1)).mean()),
        "tokens": float(np.mean([len(answer.ids) for _, answer in rows])),
        "truncated": float(np.mean([answer.finish_reason == "length" for _, answer in rows])),
        "stale_tokens": float(stale),
    }
    return Batch({**whole, "advantage": gain.reshape(-1)}, facts)


_IDS = ("tokens", "labels", "segments")


@partial(jax.jit, static_argnames="divide_by_std")
def _advantages(rewards, usable, *, divide_by_std):
    return advantages(rewards, usable, divide_by_std=divide_by_std)
