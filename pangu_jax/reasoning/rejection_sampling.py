"""Rejection sampling of a teacher's answers: the shortest that two verifiers accept."""

import dataclasses
from collections.abc import Sequence

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.reward import Sample, Score, Source, repetition


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The outcome for the answers to one question.

    Attributes:
      place: index of the answer to teach; None if none is accepted.
      looped: answers that repeat themselves, which were not verified.
      wrong: answers that the rule refused.
      refused: answers that the rule accepted and the model refused.
      unknown: answers on which a verifier failed or could not decide.
    """

    place: int | None
    looped: int = 0
    wrong: int = 0
    refused: int = 0
    unknown: int = 0


def choose(
    samples: Sequence[Sample],
    rule: Source,
    model: Source | None = None,
    *,
    most_repeated: float = 0.0,
    accepts: float = 1.0,
) -> Chosen:
    """The shortest accepted answer to a question; of equally short ones the first.

    An answer must be accepted by the rule and then, if there is one, by the model; answers that
    either cannot judge are not taught. The model judges the shortest first, until it accepts one.

    Args:
      samples: answers to one question; their lengths are those in tokens, else in characters.
      rule: scores answers, such as `reward_sources.answer` in `reward_sources.per_sample`.
      model: likewise, such as one of `reward_sources.judged_by_model`.
      most_repeated: a larger `reward.repetition` is a loop.
      accepts: the least value that accepts.

    Raises:
      InputError: no answer, or answers to more than one question.

    Source: arXiv 2505.22375 for two verifiers and the shortest correct answer; how they follow each
      other is our reading.
    """
    if not samples or len({sample.question for sample in samples}) > 1:
        raise InputError("choosing takes the answers to one question")
    plain = [i for i, sample in enumerate(samples) if repetition(sample.text) <= most_repeated]
    said = rule([samples[i] for i in plain]) if plain else []
    kinds = [_kind(score, accepts) for score in said]
    found = Chosen(
        None, len(samples) - len(plain), wrong=kinds.count("no"), unknown=kinds.count("unknown")
    )
    right = [i for i, kind in zip(plain, kinds, strict=True) if kind == "yes"]
    for i in sorted(right, key=lambda i: samples[i].tokens or len(samples[i].text)):
        kind = "yes" if model is None else _kind(model([samples[i]])[0], accepts)
        if kind == "yes":
            return dataclasses.replace(found, place=i)
        field = "refused" if kind == "no" else "unknown"
        found = dataclasses.replace(found, **{field: getattr(found, field) + 1})
    return found


def _kind(score: Score, accepts: float) -> str:
    if score.failed or score.value is None:
        return "unknown"
    return "yes" if score.value >= accepts else "no"
