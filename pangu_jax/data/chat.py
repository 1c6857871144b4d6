"""Dialogues as the text that a model was trained on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import Tokenizer

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Template:
    """How one family of models writes a dialogue.

    Attributes:
      write: (checked messages, whether to open an assistant turn) -> text.
      roles: the roles it can write.
      modes: think mode -> what is added to the last user turn.
      stops: tokens that end an assistant turn.
    """

    write: Callable[[Sequence[Message], bool], str]
    roles: tuple[str, ...]
    modes: Mapping[str, str]
    stops: tuple[str, ...]


def render(
    messages: Sequence[Message],
    template: str,
    *,
    add_generation_prompt: bool = True,
    mode: str | None = None,
) -> str:
    """The dialogue as one text, without the begin-of-text token.

    Args:
      messages: [{"role": "system" | "user" | "assistant", "content": text}, ...].
      template: a name in `TEMPLATES`.
      add_generation_prompt: ends with the opening of an assistant turn.
      mode: how much the model thinks, where the template has modes: for "pangu" it is "slow",
        "fast" or "auto". None leaves the messages as they are, which is slow.

    Raises:
      InputError: an unknown template, role or mode, no message, one without content, or a mode
        without a user turn to carry it.
    """
    known = _template(template)
    if not messages:
        raise InputError("a dialogue needs at least one message")
    for index, message in enumerate(messages):
        if message.get("role") not in known.roles or not isinstance(message.get("content"), str):
            raise InputError(
                f"message {index} needs a role of {', '.join(known.roles)} and a content text"
            )
    turns = [dict(message) for message in messages]
    if mode is not None:
        _set_mode(turns, known, mode)
    return known.write(turns, add_generation_prompt)


def stop_ids(tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
    """Ids that end an assistant turn: the tokeniser's own and the template's single tokens.

    Raises:
      InputError: an unknown template.
    """
    found = dict.fromkeys(tokenizer.eos_ids)
    for stop in _template(template).stops:
        ids = tokenizer.encode(stop)
        if len(ids) == 1:
            found[ids[0]] = None
    return tuple(found)


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise InputError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _set_mode(turns: list[dict[str, str]], template: Template, mode: str) -> None:
    if mode not in template.modes:
        raise InputError(f"unknown think mode {mode!r}; known: {', '.join(template.modes)}")
    users = [turn for turn in turns if turn["role"] == "user"]
    if not users:
        raise InputError(f"the think mode {mode!r} needs a user turn")
    users[-1]["content"] += template.modes[mode]


_PANGU_ROLES = {"system": "系统", "user": "用户", "assistant": "助手"}


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


TEMPLATES: dict[str, Template] = {
    "pangu": Template(
        _pangu,
        roles=tuple(_PANGU_ROLES),
        modes={"slow": "", "fast": " /no_think", "auto": " /auto_think"},
        stops=("[unused10]",),
    ),
}
