"""Runs `pangu-jax chat`; its options are in `cli/options/chat.py`."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.generate_file import note_thoughts
from pangu_jax.cli.options.chat import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.config import read_json
from pangu_jax.core.files import atomic_write
from pangu_jax.data.chat import (
    Reply,
    Template,
    opens_thinking,
    prompt_ids,
    render,
    stop_ids,
)
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from pangu_jax.decode.generate import stream
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How

HELP = "/new starts over, /quit ends; so does the end of the input"
GRAY, PLAIN = "\033[90m", "\033[0m"


@dataclass(frozen=True)
class _Model:
    params: dict
    cfg: DecoderConfig
    tokenizer: Tokenizer
    template: Template


def main(options: Options) -> None:
    """Answers one message, or every line of the terminal or pipe."""
    messages = _begin(options)
    with working(f"reading {options.checkpoint}"):
        params, cfg, found = open_checkpoint(
            options.checkpoint, kind="decoder", by="`pangu-jax chat`", dtype=options.dtype
        )
        params = by_layer(params, donate=True)
    note_thoughts(options.checkpoint)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.checkpoint)
    template = choose_template(options.template, options.checkpoint, tokenizer)
    model = _Model(params, cfg, tokenizer, template)
    key = jax.random.key(options.seed)
    for number, text in enumerate(_said(options)):
        if text == "/new":
            messages = _system(options)
            continue
        messages.append({"role": "user", "content": text})
        messages = _fitting(messages, model, options)
        answer = _answer(messages, model, options, jax.random.fold_in(key, number))
        messages.append({"role": "assistant", "content": answer})
        if options.history is not None:
            with atomic_write(options.history) as file:
                json.dump(messages, file, ensure_ascii=False, indent=1)


def _system(options: Options) -> list[dict[str, str]]:
    return [] if options.system is None else [{"role": "system", "content": options.system}]


def _begin(options: Options) -> list[dict[str, str]]:
    """The conversation to continue: that of --history, if there is one, and the system message."""
    if options.history is None or not Path(options.history).exists():
        return _system(options)
    found = read_json(options.history)
    render(found if isinstance(found, list) else [{}], "pangu")  # says which message is none
    if options.system is not None:
        found = [m for m in found if m["role"] != "system"]
    return [*_system(options), *found]


def _said(options: Options) -> Iterator[str]:
    if options.message is not None:
        yield options.message
        return
    asks = sys.stdin.isatty()
    if asks:
        import readline  # noqa: F401  lines can then be edited and recalled

        print(HELP, file=sys.stderr)
    while True:
        try:
            text = input("> " if asks else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text:
            yield text


def _prompt(messages: list, model: _Model, options: Options) -> tuple[str, list[int]]:
    """The conversation as text and as ids."""
    text = render(messages, model.template, mode=options.mode)
    ids = prompt_ids(text, model.tokenizer, model.template)
    check_vocabulary(ids, model.tokenizer, model.cfg.vocab)
    return text, ids


def _fitting(messages: list, model: _Model, options: Options) -> list[dict[str, str]]:
    """The conversation, without its oldest turns if it is longer than the model takes."""
    dropped = 0
    while len(_prompt(messages, model, options)[1]) + options.max_new_tokens > model.cfg.max_length:
        first = int(messages[0]["role"] == "system")
        later = [i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"]
        if not later:
            break
        dropped += later[0] - first
        messages = [*messages[:first], *messages[later[0] :]]
    if dropped:
        print(
            f"note: the {dropped} oldest messages no longer fit and are left out", file=sys.stderr
        )
    return messages


def _answer(messages: list, model: _Model, options: Options, key: jax.Array) -> str:
    """Prints an answer as it is written, thinking in gray; returns it without the thinking."""
    stops = stop_ids(model.tokenizer, model.template)
    text, prompt = _prompt(messages, model, options)
    starts_in_thinking = opens_thinking(text, model.template)
    reply = Reply(model.tokenizer, model.template.thinking, starts_in_thinking=starts_in_thinking)
    tokens = stream(
        model.params,
        prompt,
        cfg=model.cfg,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
        stop_ids=stops,
        key=key,
        how=How(dtype=options.dtype),
    )
    for token in tokens:
        if token not in stops:
            _show(reply.push(token), options)
    _show(reply.finish(), options)
    print()
    return reply.answer


def _show(parts: Iterator[tuple[bool, str]], options: Options) -> None:
    for thinking, text in parts:
        if not thinking:
            print(text, end="", flush=True)
        elif options.thinking:  # kept apart, so that a pipe gets the answers alone
            gray = (GRAY, PLAIN) if sys.stderr.isatty() else ("", "")
            print(gray[0] + text + gray[1], end="", file=sys.stderr, flush=True)
