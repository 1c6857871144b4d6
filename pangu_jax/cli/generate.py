"""Runs `pangu-jax generate`; its options are in `cli/options/generate.py`."""

import sys
import time
from typing import Any

import jax

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.generate_file import answer_file, check_file, note_length, note_thoughts
from pangu_jax.cli.options.generate import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import (
    StreamDecoder,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    text_prompt,
)
from pangu_jax.decode.generate import stream
from pangu_jax.decode.soft_thinking import SoftThought
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How
from pangu_jax.task.soft_thinking import preparation


def main(options: Options) -> None:
    """Prints the prompt and its continuation, or writes a file of answers; speed goes to stderr."""
    check_file(options)
    told = options.think_end is not None or options.soft != SoftThinkingConfig()
    if told and not options.soft_thinking:
        raise InputError("options of thinking, such as --think-tokens, want --soft-thinking")
    with working(f"reading {options.checkpoint}"):
        params, cfg, found = open_checkpoint(
            options.checkpoint, kind="decoder", by="`pangu-jax generate`", dtype=options.dtype
        )
        params = by_layer(params, donate=True)
    note_thoughts(options.checkpoint)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.checkpoint)
    if options.prompts is not None:
        answer_file(options, params, cfg, tokenizer)
    else:
        _show(options, params, cfg, tokenizer)


def _show(options: Options, params: Any, cfg: DecoderConfig, tokenizer: Tokenizer) -> None:
    text = tokenizer.encode(options.prompt or "")
    prompt = text_prompt(options.prompt or "", tokenizer)
    if not text and not tokenizer.begin:
        name = tokenizer.id_to_token(tokenizer.boundary)
        print(f"note: the prompt is empty, so the text begins after {name}", file=sys.stderr)
    check_vocabulary(prompt, tokenizer, cfg.vocab)
    soft, how = options.soft if options.soft_thinking else None, How(dtype=options.dtype)
    prepare, more = preparation(params, cfg, tokenizer, soft, options.think_end, how)
    note_length(len(prompt) + more + options.max_new_tokens, cfg)
    decoder, count, start = StreamDecoder(tokenizer), 0, None
    for token in text:
        print(decoder.push(token), end="", flush=True)
    key = jax.random.key(options.seed)
    inputs, thought = prepare(prompt, jax.random.fold_in(key, 0))  # the key of its tokens, too
    if thought is not None:
        print(_told(thought, tokenizer), file=sys.stderr)
    tokens = stream(
        params,
        inputs,
        cfg=cfg,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
        stop_ids=tokenizer.eos_ids,
        key=key,
        how=how,
    )
    for token in tokens:
        if start is None:
            start = time.perf_counter()  # the first token came after compiling
        if token not in tokenizer.eos_ids:
            print(decoder.push(token), end="", flush=True)
        count += 1
    print(decoder.finish())
    if start is not None and count > 1:
        speed = (count - 1) / max(time.perf_counter() - start, 1e-9)
        print(f"{count} tokens, {speed:.0f} tokens/s", file=sys.stderr)


def _told(thought: SoftThought, tokenizer: Tokenizer) -> str:
    """A thought in words: the likeliest token of each mixture."""
    why = {"token": "a token that ends it", "cold": "certainty", "length": "its length"}
    text = tokenizer.decode(thought.ids.tolist())
    return f"{len(thought.ids)} mixtures, ended by {why[thought.end]}; likeliest: {text}"
