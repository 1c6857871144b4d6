"""The part of `pangu-jax generate` that answers the prompts of a file, and can be resumed."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from pangu_jax.checkpoint.open import left_out
from pangu_jax.cli.options.generate import Options
from pangu_jax.cli.progress import progress
from pangu_jax.core.config import check_size, to_json, up_to_date
from pangu_jax.core.errors import InputError
from pangu_jax.core.journal import Journal
from pangu_jax.core.run_folder import check_same
from pangu_jax.data.text import records
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, text_prompt
from pangu_jax.decode.engine import Answer, Engine, Request, answers, check_max_new_tokens, round_up
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.task.soft_thinking import preparation


def check_file(options: Options) -> None:
    """Checks that the prompt and file options are consistent.

    Raises:
      InputError: they are not; the message names the options.
    """
    if options.prompts is None:
        if options.out is not None:
            raise InputError("--out is for the answers to --prompts; a --prompt's are printed")
        return
    if options.prompt is not None:
        raise InputError("give --prompt or --prompts, not both")
    if options.out is None:
        raise InputError("--prompts needs --out, the .jsonl file to write the answers to")
    if not options.out.lower().endswith(".jsonl"):
        raise InputError(f"--out is {options.out!r}; answers are written as .jsonl")
    check_size("batch", options.batch)
    check_max_new_tokens(options.max_new_tokens)


def answer_file(options: Options, params: Any, cfg: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Writes a line for each prompt that has none yet, as soon as it is answered.

    A line is {"line": of the prompt, "record": the whole record, "answer": text, "tokens": how
    many, "end": "stop" or "length", "by": what else decides the answer}. A prompt's key comes from
    its line, so an answer does not depend on what was answered before.

    Args:
      options: names the files, and says how to answer.
      params: the model's parameters, layer by layer (`transformer.by_layer`).
      cfg: the model.
      tokenizer: its tokenizer.

    Raises:
      InputError: a record has no prompt, or the file has answers to other prompts, or answers that
        other settings gave.
    """
    prompts = _read(options, cfg, tokenizer)
    found = {line: record for line, record, _ in prompts}
    by = _settings(options)
    with Journal(str(options.out), head='{"line"') as journal:
        done = _done(journal, found, by)
        rest = [prompt for prompt in prompts if prompt[0] not in done]
        began, tokens = time.perf_counter(), 0
        with progress() as show:
            answered = _answers(options, params, cfg, tokenizer, prompts, rest)
            for number, (line, answer) in enumerate(answered, len(done) + 1):
                ids = answer.ids[: -1 if answer.finish_reason == "stop" else None].tolist()
                journal.add(
                    {
                        "line": line,
                        "record": found[line],
                        "answer": tokenizer.decode(ids),
                        "tokens": len(answer.ids),
                        "end": answer.finish_reason,
                        "by": by,
                    }
                )
                tokens += len(answer.ids)
                show("answering, prompts", number, len(prompts))
    there = f", {len(done):,} of them were there" if done else ""
    print(f"answers    {len(prompts):,} in {options.out}{there}")
    if tokens:
        speed = tokens / max(time.perf_counter() - began, 1e-9)
        print(f"{tokens:,} tokens, {speed:.0f} tokens/s with compiling", file=sys.stderr)


def note_length(tokens: int, cfg: DecoderConfig) -> None:
    """Warns on stderr if a text may exceed the model's context.

    Args:
      tokens: the longest that the text may become.
      cfg: the model.
    """
    if tokens > cfg.max_length:
        print(f"note: the model was made for {cfg.max_length} tokens", file=sys.stderr)


def note_thoughts(checkpoint: str) -> None:
    """Warns of a run of `latent train` whose thoughts, pauses or gap are left out by a command."""
    for note in left_out(checkpoint):
        print(f"note: {note}", file=sys.stderr)


def _read(
    options: Options, cfg: DecoderConfig, tokenizer: Tokenizer
) -> list[tuple[int, dict[str, Any], list[int]]]:
    """The prompts: (line, record, ids) of each."""
    prompts = []
    for line, _, record in records(str(options.prompts), options.field):
        ids = text_prompt(record[options.field], tokenizer)
        try:
            check_vocabulary(ids, tokenizer, cfg.vocab)
        except InputError as error:
            raise InputError(f"{options.prompts} line {line}: {error}") from error
        prompts.append((line, record, ids))
    return prompts


def _settings(options: Options) -> dict[str, Any]:
    thinks = {"soft_thinking": True, "think_end": options.think_end, **to_json(options.soft)}
    return {
        **(thinks if options.soft_thinking else {}),
        "checkpoint": options.checkpoint,
        "tokenizer": options.tokenizer,
        "field": options.field,
        "max_new_tokens": options.max_new_tokens,
        **to_json(options.sampling),
        "seed": options.seed,
        "dtype": options.dtype,
    }


def _done(journal: Journal, prompts: dict[int, dict[str, Any]], by: dict[str, Any]) -> set[int]:
    """The lines of the prompts that are answered."""
    done: set[int] = set()
    for number, answer in enumerate(journal.found, 1):
        where = f"{journal.path} line {number}"
        line = answer.get("line")
        if not isinstance(line, int) or prompts.get(line) != answer.get("record") or line in done:
            raise InputError(
                f"{where} answers no prompt of these, or one twice; choose another --out"
            )
        made = answer.get("by")
        thought = [isinstance(x, dict) and "soft_thinking" in x for x in (made, by)]
        if thought[0] != thought[1]:
            how = "with" if thought[0] else "without"
            raise InputError(f"{where} was answered {how} --soft-thinking; choose another --out")
        check_same(
            up_to_date(made) if isinstance(made, dict) else {}, by, f"{where} holds an answer"
        )
        done.add(line)
    return done


def _answers(
    options: Options,
    params: Any,
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    prompts: list,
    rest: list,
) -> Iterator[tuple[int, Answer]]:
    """Answers `rest`, in slots as many and as long as all of `prompts` need.

    So a resumed run compiles and computes what it would have without the stop.
    """
    if not rest:
        return
    stops, key = tokenizer.eos_ids, jax.random.key(options.seed)
    soft, how = options.soft if options.soft_thinking else None, How(dtype=options.dtype)
    prepare, more = preparation(params, cfg, tokenizer, soft, options.think_end, how)
    longest = max(len(ids) for _, _, ids in prompts) + more
    note_length(longest + options.max_new_tokens, cfg)
    engine = Engine(
        params,
        cfg=cfg,
        slots=min(options.batch, len(prompts)),
        length=round_up(longest) + round_up(options.max_new_tokens),
        stops=max(8, len(stops)),
        how=how,
    )
    keys = [jax.random.fold_in(key, line) for line, _, _ in rest]
    requests = (
        Request(prepare(ids, own)[0], options.max_new_tokens, options.sampling, stops, own)
        for (_, _, ids), own in zip(rest, keys, strict=True)
    )
    for place, answer in answers(engine, requests):
        yield rest[place][0], answer
