"""A language model as a judge, run on the engine, and how often its verdicts are right."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import Reply, Template, opens_thinking, prompt_ids, render, stop_ids
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary
from pangu_jax.decode.engine import Engine, Request, answers, round_up
from pangu_jax.eval.pass_at_k import Estimate, wilson
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.reward import Score


def make_asker(
    params: Any,
    *,
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    template: Template,
    max_new_tokens: int = 16,
    slots: int = 32,
    length: int = 2048,
    how: How = HOW,
) -> Callable[[Sequence[str]], list[str]]:
    """A function from prompts to replies, each the best tokens of a dialogue of one turn.

    Args:
      params: as for `Engine`.
      cfg: the model.
      tokenizer: of the model.
      template: its chat template.
      max_new_tokens: most tokens of a reply.
      slots: prompts that are answered at once.
      length: tokens that there is room for; a longer prompt is an InputError.
      how: layout, implementations, and the type of activations.
    """
    stops = stop_ids(tokenizer, template)
    engine = Engine(
        params,
        cfg=cfg,
        slots=slots,
        length=round_up(length),
        stops=max(8, len(stops)),
        how=how,
    )

    def ask(prompts: Sequence[str]) -> list[str]:
        texts = [render([{"role": "user", "content": p}], template) for p in prompts]
        rows = [prompt_ids(text, tokenizer, template) for text in texts]
        for row in rows:
            check_vocabulary(row, tokenizer, cfg.vocab)
        replies = [""] * len(rows)
        for place, answer in answers(
            engine, (Request(r, max_new_tokens, stop_ids=stops) for r in rows)
        ):
            starts_in_thinking = opens_thinking(texts[place], template)
            reply = Reply(tokenizer, template.thinking, starts_in_thinking=starts_in_thinking)
            reply.take(answer.ids[: -1 if answer.finish_reason == "stop" else None].tolist())
            replies[place] = reply.answer
        return replies

    return ask


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of a judge with known labels.

    Attributes:
      share: of the answers that it judged, those that it judged correctly.
      chance: the share that always giving the commoner label would have.
      judged: number of answers that it judged.
      failed: number of answers on which it failed.
    """

    share: Estimate
    chance: float
    judged: int
    failed: int


def agreement(scores: Sequence[Score], right: np.ndarray) -> Agreement:
    """Compares a source's scores, where 0.5 and more mean "right", with labels, bool [answers].

    Raises:
      InputError: there are more or fewer labels than scores.
    """
    if len(scores) != len(right):
        raise InputError(f"there are {len(scores)} scores and {len(right)} known answers")
    pairs = [
        (score.value >= 0.5, bool(known))
        for score, known in zip(scores, right, strict=True)
        if score.value is not None
    ]
    share = wilson(np.array([said == known for said, known in pairs], float))
    common = np.mean([known for _, known in pairs]) if pairs else np.nan
    failed = sum(score.failed for score in scores)
    return Agreement(share, float(max(common, 1 - common)), len(pairs), failed)
