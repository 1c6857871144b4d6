"""Sums as a task that a small decoder learns: questions, rewards, a base."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.pangu_embedded.config import Learning
from pangu_jax.decode.engine import Answer, Engine, Request, answers
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.study.cells import say
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig
from pangu_jax.train.policy import answer_log_probs
from pangu_jax.train.step import init_state, make_step

ALPHABET = "\0" + "0123456789+=\n"  # an id is a place in it; 0 is padding
STOP = ALPHABET.index("\n")
LENGTH = 16
ROWS = 256  # of a step of learning from solutions
LOOK, LOOKED = 50, 256  # steps between looks at how many of the held-out questions are right
LOOKS = 1  # the draw of the questions that end learning; the table has others


def model(layers: int, width: int, vocab: int = len(ALPHABET)) -> decoder.DecoderConfig:
    """A decoder with heads of 32 at most, each with keys of its own."""
    head = min(32, width)
    attention = AttentionConfig(width // head, 1, head)
    return decoder.DecoderConfig(
        vocab, width, (LayerConfig(attention, mlp=MlpConfig(4 * width)),) * layers
    )


def question(rng: np.random.Generator, digits: int, *, held_out: bool) -> tuple[str, str]:
    """A question and its answer; about every tenth pair of numbers is held out, in either order."""
    while True:
        a, b = rng.integers(10**digits, size=2).tolist()
        low, high = sorted((a, b))  # the answer is the same in either order
        if ((37 * low + 11 * high) % 10 == 0) == held_out:
            return f"{a}+{b}=", f"{a + b}\n"


def ids(text: str) -> list[int]:
    """The text as the model reads it."""
    return [ALPHABET.index(letter) for letter in text]


class Questions:
    """Questions by number, none of them held out."""

    def __init__(self, digits: int, seed: int):
        """Of a seed."""
        self._digits, self._seed = digits, seed

    def of(self, number: int) -> tuple[str, str]:
        """A question and its answer."""
        rng = np.random.default_rng([self._seed, 1, number])
        return question(rng, self._digits, held_out=False)

    def prompt(self, number: int) -> list[int]:
        """The ids of a question."""
        return ids(self.of(number)[0])

    def reward(self, number: int, found: Sequence[Answer]) -> list[float]:
        """1 for the answer itself, else 0."""
        right = ids(self.of(number)[1])
        return [float(answer.ids.tolist() == right) for answer in found]


def accuracy(
    params: Any, cfg: decoder.DecoderConfig, digits: int, count: int, how: How, draw: int = 0
) -> float:
    """Share of so many held-out questions answered right, the likeliest token each time.

    Args:
      params: of `cfg`.
      cfg: the model.
      digits: of the numbers.
      count: how many questions.
      how: implementations and type of activations.
      draw: which questions.
    """
    rng = np.random.default_rng(draw)
    asked = [question(rng, digits, held_out=True) for _ in range(count)]
    slots = min(256, len(asked))
    engine = Engine(params, cfg=cfg, slots=slots, length=LENGTH, stops=1, how=how)
    requests = [Request(ids(text), 6, stop_ids=(STOP,)) for text, _ in asked]
    right = [found.ids.tolist() == ids(asked[i][1]) for i, found in answers(engine, requests)]
    return float(np.mean(right))


def learn(experiment: Learning, seed: int, how: How) -> tuple[Any, float, int]:
    """Learns from solutions until `until` of the held-out questions are right.

    Returns:
      The parameters, the share of right answers, and the steps that it took.
    """
    cfg = model(experiment.layers, experiment.width)
    key, rng = jax.random.key(seed), np.random.default_rng([seed, 2])
    settings = OptimizerConfig(
        learning_rate=experiment.sft_rate, schedule="constant", weight_decay=0.0
    )
    optimizer = make_optimizer(settings, experiment.sft_steps)
    state = init_state(decoder.spec(cfg), optimizer, key=key)
    step = make_step(_loss(cfg, how), optimizer)
    right = 0.0
    for number in range(1, experiment.sft_steps + 1):
        state, _ = step(state, _rows(rng, experiment.digits), key)
        if number % LOOK == 0:
            right = accuracy(state.params, cfg, experiment.digits, LOOKED, how, LOOKS)
            if number % (5 * LOOK) == 0:
                say(f"seed {seed}, step {number}: {right:.1%} right")
            if right >= experiment.until:
                break
    count = experiment.questions
    return state.params, accuracy(state.params, cfg, experiment.digits, count, how), number


@functools.lru_cache
def _loss(cfg: decoder.DecoderConfig, how: How):
    def loss(params, frozen, batch, key):
        del frozen, key
        mask = batch["mask"]
        return -(answer_log_probs(params, batch, cfg=cfg, how=how) * mask).sum(), mask.sum(), {}

    return loss


def _rows(rng: np.random.Generator, digits: int) -> dict[str, np.ndarray]:
    names = ("tokens", "labels", "segments", "mask")
    batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in names}
    for row in range(ROWS):
        text, answer = question(rng, digits, held_out=False)
        whole, first = ids(text + answer), len(text) - 1
        count = len(whole) - 1
        batch["tokens"][row, :count], batch["labels"][row, :count] = whole[:-1], whole[1:]
        batch["segments"][row, :count] = 1
        batch["mask"][row, first:count] = 1
    return batch
