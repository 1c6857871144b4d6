"""How long methods are trained whose examples differ in length: until all have read as much."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.latent_cot.config import Plan
from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.batches import phase_batches, widths
from pangu_jax.reasoning.latent.curriculum import Phase
from pangu_jax.reasoning.latent.registry import method as find_method
from pangu_jax.reasoning.latent.slots import Encoded, Markers

SAMPLED = 200  # steps of a phase whose rows are counted


def phases_for(
    tokens: int, plan: Plan, method: str, problems: Sequence[Encoded], markers: Markers
) -> tuple[Phase, ...]:
    """The phases in which a method reads about so many slots, tokens and thoughts, in all.

    Args:
      tokens: how many; 0 takes the plan's steps instead.
      plan: the plan, whose stages keep their shares of the steps.
      method: a name of `reasoning.latent.registry`.
      problems: what is trained on.
      markers: of the tokenizer.

    Raises:
      InputError: too few for the curriculum.
    """
    if not tokens:
        return latent.plan(method, problems, plan.curriculum(method))
    of_form: dict[Phase, float] = {}

    def planned(steps: int) -> tuple[tuple[Phase, ...], float]:
        phases = latent.plan(method, problems, plan.curriculum(method, steps))
        forms = [dataclasses.replace(x, steps=1, smoothing=0.0, mix=None) for x in phases]
        for form in forms:
            if form not in of_form:
                of_form[form] = _mean_slots(problems, method, form, markers)
        read = [of_form[form] * x.steps for form, x in zip(forms, phases, strict=True)]
        return phases, plan.batch * sum(read)

    steps = int(tokens / (plan.batch * _mean_slots(problems, method, Phase(1), markers)))
    for _ in range(4):  # the shares of the stages hardly move: this is more than enough
        if steps < 1:
            raise InputError(f"{tokens:,} tokens are less than a step of {method}")
        read = planned(steps)[1]
        steps = max(int(steps * tokens / read), 1)
    return planned(steps)[0]


def read_in_training(
    plan: Plan,
    method: str,
    phases: Sequence[Phase],
    problems: Sequence[Encoded],
    markers: Markers,
    seed: int,
) -> int:
    """The slots, tokens and thoughts, of all rows that training reads, a teacher's among them.

    Of a phase of more than `SAMPLED` steps, the mean of so many stands for all: making every batch
    once more takes minutes, in which a GPU waits.
    """
    chosen, total = find_method(method), 0.0
    for index, (phase, width) in enumerate(
        zip(phases, widths(problems, chosen, phases, markers), strict=True)
    ):
        batches = phase_batches(
            problems, chosen, phase, markers, width, batch=plan.batch, seed=(seed, index)
        )
        sampled = min(phase.steps, SAMPLED)
        for _ in range(sampled):
            batch = next(batches)
            rows = [batch["segments"], *[x["segments"] for x in (batch.get("teacher"),) if x]]
            total += sum(int((part > 0).sum()) for part in rows) * phase.steps / sampled
    return round(total)


def kept(
    problems: Sequence[Encoded], longest: tuple[int, int] | None, *, planned: bool = False
) -> list[Encoded]:
    """The problems whose question and whose chain have no more tokens than these.

    Of steps that are `planned` the first token is not counted, so that all methods have the same.
    """
    if longest is None:
        return list(problems)
    found = [
        x
        for x in problems
        if len(x.question) <= longest[0]
        and sum(map(len, x.steps)) - planned * len(x.steps) <= longest[1]
    ]
    if not found:
        raise InputError(f"no problem has at most {longest[0]} and {longest[1]} tokens")
    return found


def _mean_slots(problems: Sequence[Encoded], name: str, phase: Phase, markers: Markers) -> float:
    """The mean length of a row, a teacher's row included."""
    method = find_method(name)
    teacher = method.teacher
    lengths = []
    for problem in problems:
        rows = [method.slots(problem, phase, markers, phase.removed_tokens)]
        rows += [teacher(problem, markers)] if teacher else []
        lengths.append(sum(len(row.prefix) + len(row.tail) for row in rows))
    return float(np.mean(lengths)) + method.thoughts(phase)
