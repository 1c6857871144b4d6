"""How questions are put to a model, and where in its text the answer is looked for.

All words are our own, but for the form of HumanEval's completions. They are part of what is
measured, so a run keeps them with its results (`Prompter.described`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from pangu_jax.core.config import check_choices
from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import (
    Reply,
    Template,
    opens_thinking,
    prompt_ids,
    render,
    stop_ids,
)
from pangu_jax.data.tokenizer import Tokenizer, text_prompt
from pangu_jax.eval.answers import KINDS, code, extract
from pangu_jax.reasoning.bench_tasks import Item

Mode = Literal["plain", "few-shot", "chat", "slow", "fast", "auto"]
TEXTS = ("plain", "few-shot")  # the modes that need no chat template

# What a chat adds to a question.
ASKED = {
    "maths": "Reason step by step, and put your final answer within \\boxed{}.",
    "number": "Reason step by step, and put your final answer within \\boxed{}.",
    "letter": 'Reason step by step, and end with "Answer: X", where X is the letter of the right '
    "choice.",
    "boolean": 'Reason step by step, and end with "The answer is yes." or "The answer is no."',
    "words": 'End with "The answer is", and the answer.',
    "code": "Write Python, and give the whole solution in one ```python block.",
    "completion": "Complete this function, and give it whole in one ```python block.",
}
# What plain texts are, and what ends an answer in them.
QUESTION, TASK = "Question: {}\nAnswer:", "Task: {}\nSolution:\n```python\n"
CUTS = {
    "question": ("\nQuestion:",),
    "code": ("\n```",),
    "completion": (
        *("\nclass ", "\ndef ", "\n@", "\n#", "\nif ", "\nprint(", "\nassert ", "\nimport "),
        *("\nfrom ", '\n"""', "\n```"),
    ),
}
_WORKED = (
    (
        "A box holds 12 eggs. A baker buys 5 boxes and uses 43 eggs. How many are left?",
        "5 boxes hold 5 * 12 = 60 eggs. After 43 are used, 60 - 43 = 17 are left. The answer is "
        "17.",
    ),
    (
        "A ticket costs $8, and half of that for children. What do 2 adults and 3 children pay?",
        "A child pays 8 / 2 = 4 dollars. 2 adults pay 2 * 8 = 16 and 3 children pay 3 * 4 = 12, "
        "together 16 + 12 = 28 dollars. The answer is 28.",
    ),
    (
        "What is the sum of the solutions of $x^2 - 7x + 10 = 0$?",
        "x^2 - 7x + 10 = (x - 2)(x - 5), so the solutions are 2 and 5, and 2 + 5 = 7. The answer "
        "is 7.",
    ),
    (
        "A tank of 90 litres loses 2.5 litres an hour. After how many hours is a third of it gone?",
        "A third of 90 litres is 30 litres. At 2.5 litres an hour that takes 30 / 2.5 = 12 hours. "
        "The answer is 12.",
    ),
)
EXAMPLES = {
    "maths": _WORKED,
    "number": _WORKED,
    "letter": (
        (
            "Which of these is a mammal?\n\n(A) trout\n(B) bat\n(C) crow\n(D) frog",
            "Trout are fish, crows are birds and frogs are amphibians, while bats bear live young "
            "and give milk. The answer is (B).",
        ),
        (
            "Water at sea level boils at\n\n(A) 0 °C\n(B) 50 °C\n(C) 100 °C\n(D) 200 °C",
            "At the pressure of one atmosphere water boils at 100 °C. The answer is (C).",
        ),
    ),
    "boolean": (
        (
            "Can a penguin fly over a house?",
            "Penguins are birds that cannot fly. The answer is no.",
        ),
        (
            "Is a kilogram of iron as heavy as a kilogram of wool?",
            "Both weigh one kilogram. The answer is yes.",
        ),
    ),
    "words": (
        ("What is the capital of Japan?", "The answer is Tokyo."),
        ("Which planet is nearest to the sun?", "The answer is Mercury."),
    ),
    "code": (
        (
            "Write a function to add up the squares of a list.\n\nYour code should pass these "
            "tests:\nassert sum_squares([1, 2, 3]) == 14",
            "def sum_squares(numbers):\n    return sum(x * x for x in numbers)\n```",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question as a model reads it.

    Attributes:
      ids: tokens.
      starts_in_thinking: whether an answer begins inside a span of thinking.
    """

    ids: list[int]
    starts_in_thinking: bool = False


@dataclasses.dataclass(frozen=True)
class Prompter:
    """How a model is asked.

    Attributes:
      tokenizer: of the model.
      mode: "plain": the question as a text; "few-shot": behind worked examples; "chat": as a
        dialogue; "slow", "fast" and "auto": likewise, in that think mode of the template.
      template: how dialogues are written; None for the modes that need none.
      system: what a dialogue begins with, if anything.
    """

    tokenizer: Tokenizer
    mode: Mode
    template: Template | None = None
    system: str | None = None

    def __post_init__(self):
        check_choices(self)

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        if self.template is None:
            return tuple(self.tokenizer.eos_ids)
        return stop_ids(self.tokenizer, self.template)

    def text(self, item: Item) -> str:
        """The prompt.

        Raises:
          InputError: the template has no such mode, or none at all.
        """
        if self.mode in TEXTS:
            return plain(item, shots=self.mode == "few-shot")
        if self.template is None:
            raise InputError(f"the mode {self.mode!r} needs a chat template")
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns += [{"role": "user", "content": asked(item)}]
        mode = None if self.mode == "chat" else self.mode
        return render(turns, self.template, mode=mode)

    def prompt(self, item: Item) -> Prompt:
        """The prompt as the model reads it.

        Raises:
          InputError: as `text`.
        """
        text = self.text(item)
        if self.template is None:
            return Prompt(text_prompt(text, self.tokenizer))
        ids = prompt_ids(text, self.tokenizer, self.template)
        return Prompt(ids, opens_thinking(text, self.template))

    def read(self, item: Item, prompt: Prompt, ids: Sequence[int]) -> tuple[str, str]:
        """(what was thought, what was said) of an answer's ids; any thread may call it.

        What a plain text goes on with behind the answer is cut off.

        Args:
          item: the question.
          prompt: as `prompt` gave it.
          ids: of the answer.
        """
        ids = list(ids)
        if ids and ids[-1] in self.stops:
            del ids[-1]
        if self.template is None:
            # Behind the prompt, as some tokenizers leave out the space that a text begins with.
            before = self.tokenizer.decode(prompt.ids)
            text = self.tokenizer.decode([*prompt.ids, *ids])
            text = text[len(before) :] if text.startswith(before) else self.tokenizer.decode(ids)
            ends = (text.find(cut) for cut in CUTS[_form(item)])
            return "", text[: min((end for end in ends if end >= 0), default=None)]
        reply = Reply(
            self.tokenizer, self.template.thinking, starts_in_thinking=prompt.starts_in_thinking
        )
        reply.take(ids)
        return reply.thought, reply.answer

    def found(self, item: Item, said: str) -> str | None:
        """The answer in what was said; None where there is none of the form that was asked for."""
        if item.kind != "code":
            return extract(said, item.kind)
        if self.template is None:  # the text is the code
            return said if said.strip() else None
        return code(said, item.code.asked if item.code else ())

    def described(self, items: Sequence[Item]) -> dict[str, Any]:
        """What a run keeps of how questions are asked and read: words for each kind of them."""
        found: dict[str, Any] = {}
        for item in items:
            kind = "completion" if _form(item) == "completion" else item.kind
            if kind in found:
                continue
            like = dataclasses.replace(item, question="{question}")
            rule = (KINDS[item.kind].__doc__ or "").strip().splitlines()[0]
            found[kind] = {"prompt": self.text(like), "answer": rule}
            if self.template is None:
                found[kind]["cuts"] = CUTS[_form(item)]
                found[kind]["answer"] = "The text itself." if item.kind == "code" else rule
        return found


def asked(item: Item) -> str:
    """A question as a user asks it."""
    form = _form(item)
    if form == "completion":
        return f"{ASKED[form]}\n\n```python\n{item.question.rstrip()}\n```"
    return f"{item.question.strip()}\n\n{ASKED[item.kind]}"


def plain(item: Item, *, shots: bool) -> str:
    """A question as a text to go on with; completions are their own prompt, without examples."""
    form = _form(item)
    if form == "completion":
        return item.question
    frame = TASK if form == "code" else QUESTION
    space = "" if form == "code" else " "
    parts = [frame.format(q) + space + a for q, a in EXAMPLES[item.kind]] if shots else []
    return "\n\n".join([*parts, frame.format(item.question.strip())])


def _form(item: Item) -> str:
    if item.kind != "code":
        return "question"
    return "completion" if item.code is not None and item.code.before else "code"
