"""Chat messages rendered as the text a model was trained on, and the parsing of its replies."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import StreamDecoder, Tokenizer

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Template:
    """The chat format of one family of models.

    Attributes:
      write: (checked messages, whether to open an assistant turn) -> text.
      roles: the roles it can write.
      modes: think mode -> suffix of the last user turn.
      stops: tokens that end an assistant turn.
      thinking: tags that open and close a span of thinking before the answer, or None.
      whole: whether it writes all that precedes a dialogue, including any begin-of-text token.
    """

    write: Callable[[Sequence[Message], bool], str]
    roles: tuple[str, ...]
    modes: Mapping[str, str]
    stops: tuple[str, ...]
    thinking: tuple[str, str] | None = None
    whole: bool = False


def render(
    messages: Sequence[Message],
    template: str | Template,
    *,
    add_generation_prompt: bool = True,
    mode: str | None = None,
) -> str:
    """Renders a conversation as text, with a begin-of-text token only if the template writes one.

    Args:
      messages: [{"role": "system" | "user" | "assistant", "content": text}, ...].
      template: a name in `TEMPLATES`, or one of a checkpoint's own.
      add_generation_prompt: ends with the opening of an assistant turn.
      mode: thinking mode, if the template has modes: for "pangu" it is "slow",
        "fast" or "auto". None leaves the messages unchanged, which is slow.

    Raises:
      InputError: an unknown template, role or mode, no message, one without content, or a mode
        without a user turn to carry it.
    """
    known = _template(template)
    if not messages:
        raise InputError("a dialogue needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"message {index} is no object with role and content")
        if message.get("role") not in known.roles or not isinstance(message.get("content"), str):
            raise InputError(
                f"message {index} needs a role of {', '.join(known.roles)} and a content text"
            )
    turns = [dict(message) for message in messages]
    if mode is not None:
        _set_mode(turns, known, mode)
    return known.write(turns, add_generation_prompt)


def stop_ids(tokenizer: Tokenizer, template: str | Template) -> tuple[int, ...]:
    """Ids that end an assistant turn: the tokenizer's own and those of the template's stops.

    Raises:
      InputError: an unknown template.
    """
    own = [tokenizer.token_to_id(stop) for stop in _template(template).stops]
    return tuple(dict.fromkeys([*tokenizer.eos_ids, *(i for i in own if i is not None)]))


def prompt_ids(text: str, tokenizer: Tokenizer, template: str | Template) -> list[int]:
    """Ids of a rendered conversation, tokenized as a whole, as the template intends.

    A checkpoint's own template writes its begin-of-text token itself; the others leave it to the
    tokenizer.

    Args:
      text: the result of `render`.
      tokenizer: of the model.
      template: as for `render`.

    Raises:
      InputError: an unknown template, or one that wrote nothing.
    """
    ids, begin = tokenizer.encode(text), list(tokenizer.begin)
    if not (_template(template).whole or (begin and ids[: len(begin)] == begin)):
        ids = [*begin, *ids]
    if not ids:
        raise InputError("the chat template wrote nothing, which a model cannot answer")
    return ids


def opens_thinking(text: str, template: str | Template) -> bool:
    """Whether the rendered text ends with an opening thinking tag, so the reply starts thinking."""
    tags = _template(template).thinking
    return tags is not None and text.rstrip().endswith(tags[0])


class Reply:
    """Parses an assistant turn as its tokens arrive, into thinking and answer.

    Joined, the texts of a kind are that part of the turn; `answer` is the part for the history, as
    models do not see their earlier thinking.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        thinking: tuple[str, str] | None,
        *,
        starts_in_thinking: bool = False,
    ):
        """Starts with an empty turn.

        Args:
          tokenizer: of the model.
          thinking: the tags of the thinking span, or None if a turn is all answer.
          starts_in_thinking: whether the prompt opened the span (`opens_thinking`).
        """
        self._tags = thinking or ()
        # As tokens of their own they are special, and decoding would leave them out.
        ids = [(tokenizer.token_to_id(tag), tag) for tag in self._tags]
        self._single = {number: tag for number, tag in ids if number is not None}
        self._decoder = StreamDecoder(tokenizer)
        self._tokenizer = tokenizer
        self._held, self._inside = "", starts_in_thinking
        self.answer = self.thought = ""

    def push(self, token: int) -> Iterator[tuple[bool, str]]:
        """(whether it is thinking, text) for what the next token completes."""
        if token in self._single:
            self._held += self._decoder.finish() + self._single[token]
            self._decoder = StreamDecoder(self._tokenizer)
        else:
            self._held += self._decoder.push(token)
        yield from self._split(final=False)

    def finish(self) -> Iterator[tuple[bool, str]]:
        """Yields the text that was held back."""
        self._held += self._decoder.finish()
        yield from self._split(final=True)
        self.answer, self.thought = self.answer.strip(), self.thought.strip()

    def take(self, ids: Sequence[int]) -> None:
        """Parses a whole turn at once, as `push` for each token and then `finish` would."""
        for single, part in itertools.groupby(ids, self._single.__contains__):
            some = list(part)
            texts = (
                map(self._single.__getitem__, some) if single else [self._tokenizer.decode(some)]
            )
            self._held += "".join(texts)
        collections.deque(self.finish(), maxlen=0)

    def _split(self, final: bool) -> Iterator[tuple[bool, str]]:
        while self._tags:
            before, tag, after = self._held.partition(self._tags[self._inside])
            if not tag:
                break
            yield from self._give(before)
            self._held, self._inside = after, not self._inside
        keep = (
            0
            if final or not self._tags
            else partial_tag_length(self._held, self._tags[self._inside])
        )
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        yield from self._give(ready)

    def _give(self, text: str) -> Iterator[tuple[bool, str]]:
        if not text:
            return
        if self._inside:
            self.thought += text
        else:
            self.answer += text
        yield self._inside, text


def partial_tag_length(text: str, tag: str) -> int:
    """Length of the longest proper prefix of the tag that the text ends with, in characters."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def _template(name: str | Template) -> Template:
    if isinstance(name, Template):
        return name
    if name not in TEMPLATES:
        raise InputError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _set_mode(turns: list[dict[str, str]], template: Template, mode: str) -> None:
    if mode not in template.modes:
        known = ", ".join(template.modes) or "none, as the template has no modes"
        raise InputError(f"unknown think mode {mode!r}; known: {known}")
    users = [turn for turn in turns if turn["role"] == "user"]
    if not users:
        raise InputError(f"the think mode {mode!r} needs a user turn")
    users[-1]["content"] += template.modes[mode]


_PANGU_ROLES = {
    "system": "系统",
    "user": "用户",
    "assistant": "助手",
    "tool": "工具",
    "function": "方法",
}


def _pangu(turns: Sequence[Message], add_generation_prompt: bool) -> str:
    """[unused9] role, full-width colon, text, [unused10]; no line breaks between turns.

    A system turn is written even when there is none.

    Source: the public chat templates of Pangu Pro MoE and openPangu-Embedded.
    """
    if turns[0]["role"] != "system":
        turns = [{"role": "system", "content": ""}, *turns]
    text = "".join(
        f"[unused9]{_PANGU_ROLES[turn['role']]}：{turn['content']}[unused10]" for turn in turns
    )
    return text + ("[unused9]助手：" if add_generation_prompt else "")


def _llama3(turns: Sequence[Message], add_generation_prompt: bool) -> str:
    """A header with the role, an empty line, the text without outer white space, <|eot_id|>.

    Source: the public chat template of Llama 3 Instruct.
    """
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = "".join(
        head.format(turn["role"]) + turn["content"].strip() + "<|eot_id|>" for turn in turns
    )
    return text + (head.format("assistant") if add_generation_prompt else "")


def _chatml(turns: Sequence[Message], add_generation_prompt: bool) -> str:
    """<|im_start|>, role, line break, text, <|im_end|>, line break.

    Source: the public ChatML format, as Qwen models use it; no system turn is added.
    """
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


TEMPLATES: dict[str, Template] = {
    "pangu": Template(
        _pangu,
        roles=tuple(_PANGU_ROLES),
        modes={"slow": "", "fast": " /no_think", "auto": " /auto_think"},
        stops=("[unused10]",),
        thinking=("[unused16]", "[unused17]"),
    ),
    "llama3": Template(
        _llama3,
        roles=("system", "user", "assistant", "tool", "ipython"),
        modes={},
        stops=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    ),
    "chatml": Template(
        _chatml,
        roles=("system", "user", "assistant", "tool"),
        modes={},
        stops=("<|im_end|>", "<|endoftext|>"),
        thinking=("<think>", "</think>"),
    ),
}
