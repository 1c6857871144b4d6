"""Dialogues as the text that a model was trained on."""

from collections.abc import Sequence

from pangu_jax.core.errors import InputError

PANGU_ROLES = {"system": "系统", "user": "用户", "assistant": "助手"}
PANGU_MODES = {"slow": "", "fast": " /no_think", "auto": " /auto_think"}


def pangu(
    messages: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool = True,
    mode: str = "slow",
) -> str:
    """The openPangu form: [unused9] role, full-width colon, text, [unused10]; no line breaks.

    A system turn is written even when there is none. The think modes of the Embedded models are a
    suffix of the last user turn: nothing is slow, /no_think fast, /auto_think the model's choice.

    Args:
      messages: [{"role": "system" | "user" | "assistant", "content": text}, ...].
      add_generation_prompt: ends with the opening of an assistant turn.
      mode: "slow", "fast" or "auto".

    Raises:
      InputError: an unknown role or mode, or a message without content.

    Source: the public chat templates of Pangu Pro MoE and openPangu-Embedded.
    """
    if mode not in PANGU_MODES:
        raise InputError(f"unknown think mode {mode!r}; known: {', '.join(PANGU_MODES)}")
    for index, message in enumerate(messages):
        if message.get("role") not in PANGU_ROLES or not isinstance(message.get("content"), str):
            raise InputError(
                f"message {index} needs a role of {', '.join(PANGU_ROLES)} and a content text"
            )
    turns = list(messages)
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    text = ""
    for index, turn in enumerate(turns):
        suffix = PANGU_MODES[mode] if users and index == users[-1] else ""
        text += f"[unused9]{PANGU_ROLES[turn['role']]}：{turn['content']}{suffix}[unused10]"
    return text + ("[unused9]助手：" if add_generation_prompt else "")
