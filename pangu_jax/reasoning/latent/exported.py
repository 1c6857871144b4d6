"""Export of a run of a latent method: what its programs do, and what a caller must know."""

import dataclasses
from pathlib import Path
from typing import Any

from pangu_jax.core.config import load_config
from pangu_jax.data.tokenizer import Tokenizer
from pangu_jax.export.decoder import Thinking
from pangu_jax.reasoning.latent.feedback import feedback
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.slots import Encoded, markers_of
from pangu_jax.reasoning.latent.train import RUN, Trained, check_tokenizer


@dataclasses.dataclass(frozen=True)
class Asking:
    """The form in which programs take questions.

    Attributes:
      thinking: what they do after a prompt; None if a prompt is tokens alone.
      facts: for the artifact: "ending", text appended to a question before it is tokenized;
        "begin" and "suffix", ids before and after them; "mark", the id after which an answer
        follows.
      note: the same, for the user.
      gap: positions that stay free behind a prompt.
      longest: tokens of the longest prompt that the run trained or measured on, with the ids around
        its question; 0 if it does not say.
    """

    thinking: Thinking | None
    facts: dict[str, Any]
    note: str
    gap: int
    longest: int


def asking(run: str | Path, tokenizer: Tokenizer) -> Asking:
    """The form of questions to a run's model: that of its last stage.

    Args:
      run: a folder that `latent train` wrote.
      tokenizer: its tokenizer.

    Raises:
      InputError: the folder holds no such run, or the tokenizer is another or lacks a marker.
    """
    trained = load_config(Trained, Path(run) / RUN)
    check_tokenizer(run, trained, tokenizer.digest, tokenizer.name)
    markers = markers_of(tokenizer)
    chosen = method(trained.method)
    row = chosen.slots(Encoded((-1,), (), ()), trained.phase, markers, 0)
    place, thoughts = row.prefix.index(-1), chosen.thoughts(trained.phase)
    begin, suffix, given = row.prefix[:place], row.prefix[place + 1 :], row.tail[: row.given]
    thinking = None
    if thoughts:
        thinking = Thinking(thoughts, feedback(chosen.feedback), given)
    else:
        suffix += given
    slots = trained.phase.slots
    between = f"{thoughts} thoughts" if thoughts else f"{slots} pauses" if slots else "no thoughts"
    note = f"a question, {between}, and what {trained.method} learned to write then"
    gap = trained.phase.chain_room
    note += f", {gap} positions further on" if gap else ""
    facts = {"ending": "\n", "begin": begin, "suffix": suffix, "mark": markers.answer}
    question = trained.longest_question
    longest = 0 if question is None else len(begin) + question + len(suffix)
    return Asking(thinking, facts, note, gap, longest)
