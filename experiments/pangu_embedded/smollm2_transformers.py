"""Answers of a checkpoint here and in stock transformers, in float32, token by token."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.decode.engine import Answer, Engine, Request, answers
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.nn.how import How
from pangu_jax.reasoning.rl_trainer import make_score
from pangu_jax.reasoning.rollout import Rollout, make_batch

ROWS = 32  # that transformers answers at once
FREE = 2**33  # bytes, more than the model and its caches take
DRAWN = 8  # answers whose log-probabilities are computed again


def compared(
    folder: Path,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    *,
    stops: tuple[int, ...],
    max_new_tokens: int,
    length: int,
) -> dict[str, Any]:
    """How many greedy answers are the same, and the same of prompts' ids.

    Args:
      folder: a checkpoint that transformers opens.
      texts: the prompts.
      prompts: their ids, as this library has them.
      stops: ids that end an answer.
      max_new_tokens: of an answer.
      length: tokens that a slot has room for.

    Returns:
      JSON values: "answers", how many there are; "same", how many are equal in every token; "same
      prompts"; "differ", where each other one differs first; "log-probability", the greatest
      difference of a sampled token's log-probability and the one that the trainer computes. None
      for what was not tried, as transformers is not installed.
    """
    params, cfg, _ = open_checkpoint(folder, kind="decoder", by="this experiment", dtype="float32")
    with jax.default_matmul_precision("highest"):
        sizes = {"slots": min(64, len(prompts)), "length": length, "stops": len(stops)}
        engine = Engine(params, cfg=cfg, how=How(dtype="float32"), **sizes)
        asked = [Request(ids, max_new_tokens, stop_ids=stops) for ids in prompts]
        ours = [answer.ids.tolist() for _, answer in sorted(answers(engine, asked), key=_place)]
        off = _log_probs_off(engine, params, cfg, prompts[:DRAWN], stops, max_new_tokens)
    found: dict[str, Any] = {"answers": len(ours), "log-probability": off}
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return found | {"same": None, "same prompts": None, "differ": None}
    theirs, same_prompts = _of_transformers(folder, texts, prompts, stops, max_new_tokens)
    differ = [_first(*pair) for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
    return found | {
        "same": len(ours) - len(differ),
        "same prompts": same_prompts,
        "differ": differ,
    }


def _place(found: tuple[int, Answer]) -> int:
    return found[0]


def _first(one: list[int], other: list[int]) -> int:
    """Where two answers differ first."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _log_probs_off(engine: Engine, params: Any, cfg: Any, prompts, stops, most: int) -> float:
    """Of answers that are drawn: as the engine gives them, less as the trainer computes them."""
    requests = [
        Request(ids, most, SamplingConfig(temperature=1.0), stops, jax.random.key(number))
        for number, ids in enumerate(prompts)
    ]
    rollouts = [Rollout(ids, number) for number, ids in enumerate(prompts)]
    for place, answer in answers(engine, requests):
        rollouts[place].answers[0] = answer
        rollouts[place].rewards = np.zeros(1)
    arrays = make_batch(rollouts).arrays
    score = make_score(cfg, temperature=1.0, accumulate=1, how=How(dtype="float32"))
    again, worst = np.asarray(score(params, arrays)), 0.0
    for row, rollout in enumerate(rollouts):
        sampled, first = rollout.answers[0].sampled_log_probs, len(rollout.prompt) - 1
        away = np.abs(again[row, first : first + len(sampled)] - sampled)
        worst = max(worst, float(away.max()))
    return worst


def _of_transformers(folder, texts, prompts, stops, most) -> tuple[list[list[int]], int | None]:
    """Its greedy answers, and to how many prompts its tokenizer gives the same ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # jax may hold all of the GPU's memory.
    roomy = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > FREE
    device = "cuda" if roomy else "cpu"
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    same = None
    if (folder / "tokenizer.json").is_file():
        read = AutoTokenizer.from_pretrained(folder)
        ids = [read(text, add_special_tokens=False)["input_ids"] for text in texts]
        same = sum(list(one) == list(other) for one, other in zip(ids, prompts, strict=True))
    found = []
    for begin in range(0, len(prompts), ROWS):
        rows = prompts[begin : begin + ROWS]
        longest = max(map(len, rows))
        padded = torch.tensor([[stops[0]] * (longest - len(ids)) + list(ids) for ids in rows])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
        with torch.no_grad():
            out = theirs.generate(
                padded.to(device),
                attention_mask=mask.to(device),
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=list(stops),
                pad_token_id=stops[0],
            )
        found += [_ended(ids, stops) for ids in out[:, longest:].tolist()]
    return found, same


def _ended(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    """Up to the first stop."""
    return ids[: next((i + 1 for i, one in enumerate(ids) if one in stops), len(ids))]
