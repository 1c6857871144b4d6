"""Runs `pangu-jax latent train`; its options are in `cli/options/latent_train.py`."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.latent_eval import check_data, described, unseen
from pangu_jax.cli.options.latent_train import Options
from pangu_jax.cli.progress import working
from pangu_jax.cli.stopping import stoppable
from pangu_jax.core.config import check_size, load_config, save_config, to_json
from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.spec import count
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.data.word_tokenizer import files_with_tokens
from pangu_jax.models import decoder, presets, registry
from pangu_jax.models.thinker import ThinkerConfig, from_decoder, written_out
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import ALL, CurriculumConfig, Phase
from pangu_jax.reasoning.latent.held_out import hashes, load_hashes, save_hashes
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.score import Score, check_problems, scores
from pangu_jax.reasoning.latent.slots import NAMES
from pangu_jax.reasoning.latent.task import (
    Ids,
    Task,
    encode_task,
    located,
    names_of,
    read_task,
    words_of,
)
from pangu_jax.train.loop_config import LoopConfig

MOST_NEW = 8  # tokens that an answer may have beyond the longest of the training problems

# What may differ when a run is resumed: it changes no result.
FREE = ("out", "checkpoint_every")

# The methods that read a setting; all read the others.
STAGED, THINKING = ("coconut", "pause", "icot"), ("coconut", "pause", "codi")
READ_BY = {
    **dict.fromkeys(("stage_steps", "first_steps"), STAGED),
    **dict.fromkeys(("stages", "slots_per_stage"), THINKING),
    **dict.fromkeys(("mixed", "unmarked"), ("coconut", "pause")),
    **dict.fromkeys(("smoothing", "most_removed", "keep_position"), ("icot",)),
    **dict.fromkeys(("align", "teach"), ("codi",)),
    **dict.fromkeys(("depth", "steer"), ("adaptive",)),
    "turns": ("looped", "adaptive"),
    "plans": ("planning",),
}


def main(options: Options) -> None:
    """Trains, from the last checkpoint in OUT if there is one, and measures the answers."""
    _check(options)
    name, test = located(options.task, options.test, options.data)
    with working(f"reading {name}"):
        task = read_task(
            name,
            test=test,
            problems=options.problems,
            tests=options.tests,
            seed=options.seed,
            workers=os.cpu_count() or 1,
        )
    task, seen = _without_seen(task, options.init)
    chosen = method(options.method)
    names = names_of(options.own.plans if chosen.plans else 0)
    params, plain, files, added = _model(options, task, names)
    latent.check_model(plain)
    with working("encoding"):
        ids = encode_task(task, files, plans=len(names) - len(NAMES))
    params, model = _extended(options, params, plain, ids, added)
    phases = latent.plan(options.method, ids.training, options.curriculum)
    latent.check_room(plain, phases)
    check_problems(ids.testing, chosen, phases[-1])
    _note(options, ids, phases, plain)
    trained = latent.Trained(
        options.method,
        phases[-1],
        name,
        test,
        options.tests,
        options.curriculum.steps,
        ids.longest + MOST_NEW,
        ids.tokenizer,
        ids.longest_question,
    )
    how = How(remat=options.remat, dtype=options.dtype)
    measure = partial(_measure, ids=ids, model=model, trained=trained, how=how)

    def evaluate(params: Any) -> dict[str, float]:
        found = measure(params)
        ablated = {f"accuracy_{kind}": one.accuracy for kind, one in found.items() if kind}
        return {**dataclasses.asdict(found[""]), **ablated}

    loop = LoopConfig(
        options.curriculum.steps,
        options.accumulate,
        options.seed,
        options.checkpoint_every,
        evaluate_every=options.evaluate_every,
    )
    folder = Path(options.out)
    with store.begin(model, folder, _settings(options, task), free=FREE) as claim:
        if (folder / latent.RUN).is_file():
            source = options.init or "these words"
            was = load_config(latent.Trained, folder / latent.RUN)
            latent.check_tokenizer(folder, was, ids.tokenizer, f"that of {source}")
        _keep(files, trained, np.union1d(seen, hashes(task.training)), folder)
        print(
            f"{count(registry.spec(model)):,} parameters, {len(ids.training):,} problems, "
            f"{len(phases)} stages",
            file=sys.stderr,
        )
        with stoppable():
            state = latent.train(
                ids.training,
                phases,
                method=options.method,
                markers=ids.markers,
                model=model,
                loop=loop,
                batch=options.batch,
                own=options.own,
                optimizer=options.optimizer,
                params=params,
                folder=claim,
                evaluate=evaluate if options.evaluate_every else None,
                how=how,
            )
        print(described(measure(state.params), options.method, task.chance))
    print(f"{folder} holds the run; try: pangu-jax latent eval {folder}")


def _check(options: Options) -> None:
    check_size("problems", options.problems)
    check_size("tests", options.tests)
    check_size("batch", options.batch)
    check_size("accumulate", options.accumulate)
    check_size("seed", options.seed, least=0)
    check_data(options.task, options.data)
    if options.batch % options.accumulate:
        raise InputError(
            f"accumulate {options.accumulate} must divide the batch of {options.batch}"
        )


def _note(
    options: Options, ids: Ids, phases: tuple[Phase, ...], cfg: decoder.DecoderConfig
) -> None:
    """Says on stderr what a user may not expect of these options and problems."""
    pairs = ((options.curriculum, CurriculumConfig()), (options.own, MethodConfig()))
    unread = [
        field.name
        for given, usual in pairs
        for field in dataclasses.fields(given)
        if getattr(given, field.name) != getattr(usual, field.name)
        and options.method not in READ_BY.get(field.name, (options.method,))
    ]
    if unread:
        print(f"note: {options.method} does not read {', '.join(unread)}", file=sys.stderr)
    chosen, (first, last) = method(options.method), (phases[0], phases[-1])
    bare = sum(not any(problem.steps) for problem in ids.training)
    if bare and (chosen.teacher is not None or first.removed_steps < ALL):
        print(
            f"note: {bare:,} of {len(ids.training):,} problems to train on have no steps",
            file=sys.stderr,
        )
    longest = max(
        len(row.prefix) + chosen.thoughts(phase) + len(row.tail)
        for phase in (first, last)
        for problem in (*ids.training, *ids.testing)
        for row in (chosen.slots(problem, phase, ids.markers, phase.removed_tokens),)
    )
    if longest > cfg.max_length:
        print(
            f"note: rows have up to {longest:,} tokens, the model was made for {cfg.max_length:,}",
            file=sys.stderr,
        )


def _measure(
    params: Any,
    *,
    ids: Ids,
    model: decoder.DecoderConfig | ThinkerConfig,
    trained: latent.Trained,
    how: How,
) -> dict[str, Score]:
    """Scores the model's answers to the test problems."""
    params, cfg = written_out(params, model)
    return scores(
        params,
        ids.testing,
        method(trained.method),
        trained.phase,
        ids.markers,
        cfg=cfg,
        max_new_tokens=trained.max_new_tokens,
        how=how,
    )


def _settings(options: Options, task: Task) -> dict[str, Any]:
    """The settings that a resumed run must share; newer options count only where they are set."""
    settings = {**to_json(options), "out": "", "data": _fingerprint(task)}
    if options.own == MethodConfig():  # as runs are that began before there was any
        del settings["own"]
    newer = {"mixed": 0.0, "first_steps": None, "unmarked": False, "keep_position": False}
    settings["curriculum"] = {
        name: value
        for name, value in settings["curriculum"].items()
        if name not in newer or value != newer[name]
    }
    return settings


def _without_seen(task: Task, init: str | None) -> tuple[Task, np.ndarray]:
    """The task without the test problems that `init` was trained on, and hashes of what it saw."""
    if init is None or not (Path(init) / latent.RUN).is_file():
        return task, np.zeros(0, "<u8")
    seen = load_hashes(init)
    return dataclasses.replace(task, testing=unseen(task.testing, seen, init)), seen


def _model(
    options: Options, task: Task, names: list[str]
) -> tuple[Any, decoder.DecoderConfig, Mapping[str, bytes], list[str]]:
    """Parameters (None: drawn), configuration, tokenizer files (none for bytes), new tokens."""
    if options.init is None:
        files = {} if options.tokenizer == "bytes" else words_of(task, len(names) - len(NAMES))
        return None, presets.preset(options.preset), files, names
    with working(f"reading {options.init}"):
        params, cfg, found = open_checkpoint(
            options.init, kind="decoder", by="`pangu-jax latent train`", dtype="float32"
        )
    tokenizer = load_tokenizer(found, checkpoint=options.init)
    if isinstance(tokenizer, ByteTokenizer):  # its ids have no names: the run says what they were
        known = (Path(options.init) / latent.RUN).is_file()
        return params, cfg, {}, [] if known else names
    added = [name for name in names if tokenizer.token_to_id(name) is None]
    return params, cfg, files_with_tokens(tokenizer, names), added


def _extended(
    options: Options, params: Any, plain: decoder.DecoderConfig, ids: Ids, added: list[str]
) -> tuple[Any, decoder.DecoderConfig | ThinkerConfig]:
    """The model to train: with rows for new tokens, and with what the method adds to a decoder."""
    if options.init is None:
        plain = dataclasses.replace(plain, vocab=-(-ids.vocab // 8) * 8)
        return None, method(options.method).model(plain, options.own)
    params, plain = latent.with_rows(params, plain, ids.of(added), ids.vocab)
    model = method(options.method).model(plain, options.own)
    if isinstance(model, ThinkerConfig):
        params = from_decoder(params, model, key=jax.random.key(options.seed))
    return params, model


def _fingerprint(task: Task) -> str:
    rows = [dataclasses.astuple(problem) for problem in (*task.training, *task.testing)]
    return json_digest([len(task.training), *rows])


def _keep(
    files: Mapping[str, bytes], trained: latent.Trained, seen: np.ndarray, folder: Path
) -> None:
    for name, content in files.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(content)
    save_hashes(folder, seen)
    save_config(trained, folder / latent.RUN)
