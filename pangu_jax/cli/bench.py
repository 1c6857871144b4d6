"""Runs `pangu-jax bench`; its options are in `cli/options/bench.py`."""

import collections
import dataclasses
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.bench_report import write_report
from pangu_jax.cli.generate_file import note_length, note_thoughts
from pangu_jax.cli.options.bench import Options
from pangu_jax.cli.progress import Show, progress, working
from pangu_jax.core.cells import compute, open_results
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.journal import Journal
from pangu_jax.core.tree import content_hash
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.tokenizer import check_vocabulary, load_tokenizer
from pangu_jax.decode.engine import Answer, Engine, Request, answers, check_max_new_tokens, round_up
from pangu_jax.eval.pass_at_k import repeated
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How
from pangu_jax.reasoning import bench
from pangu_jax.reasoning.bench_prompts import TEXTS, Prompt, Prompter
from pangu_jax.reasoning.bench_tasks import Task, find_tasks

HEAD, HASHES = '{"question"', "hashes"
KEYS = ("question", "sample", "said", "found", "right", "why", "tokens", "end")


@dataclass(frozen=True)
class Run:
    """What the tasks of a run share.

    Attributes:
      options: what was asked for.
      folder: the run's folder.
      params: the model's parameters, layer by layer (`transformer.by_layer`).
      cfg: the model.
      prompter: makes prompts of questions.
      tasks: the tasks to answer.
      prompts: the prompts of each task, in the order of its questions, by the task's name.
    """

    options: Options
    folder: Path
    params: Any
    cfg: DecoderConfig
    prompter: Prompter
    tasks: list[Task]
    prompts: dict[str, list[Prompt]]


def main(options: Options) -> None:
    """Writes answers, results.json and report.md, and prints the table."""
    _check(options)
    with working("reading the questions"):
        tasks = [
            _first(task, options.questions) for task in find_tasks(options.tasks, options.data)
        ]
    if any(task.name == HASHES for task in tasks):
        raise InputError(
            f"no task can be called {HASHES}, as results.json has that; rename the file"
        )
    if options.judge == "now":
        bench.check_judges(tasks, allow_code=options.allow_code_execution)
    with working(f"reading {options.model}"):
        params, cfg, found = open_checkpoint(
            options.model, kind="decoder", by="`pangu-jax bench`", dtype=options.dtype
        )
        about = {"name": Path(options.model).resolve().name, "parameters": content_hash(params)}
        params = by_layer(params, donate=True)
    note_thoughts(options.model)
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.model)
    dialogue = options.mode not in TEXTS
    template = choose_template(options.template, options.model, tokenizer) if dialogue else None
    prompter = Prompter(tokenizer, options.mode, template, options.system)
    about |= {"config": to_json(cfg), "tokenizer": tokenizer.digest}
    settings = _settings(options, about, tasks, prompter)
    folder = Path(options.out)
    results = open_results(folder, settings)
    compute(
        folder, results, HASHES, lambda: {name: json_digest(settings[name]) for name in settings}
    )
    with working("writing the prompts"):
        prompts = {task.name: [prompter.prompt(item) for item in task.items] for task in tasks}
    _measure(Run(options, folder, params, cfg, prompter, tasks, prompts), results)
    print(write_report(folder, settings, results))
    _note_unjudged(tasks, results, options.judge)


def _check(options: Options) -> None:
    for name in ("samples", "batch"):
        check_size(name, getattr(options, name))
    if options.questions is not None:
        check_size("questions", options.questions)
    check_size("seed", options.seed, least=0)
    check_max_new_tokens(options.max_new_tokens)
    if options.samples > 1 and not options.sampling.temperature:
        raise InputError(
            f"--samples {options.samples} at temperature 0 would be {options.samples} times the "
            "same answer; give --temperature"
        )
    if options.system is not None and options.mode in TEXTS:
        raise InputError(f"--system is for dialogues; the mode {options.mode} is a text")


def _first(task: Task, questions: int | None) -> Task:
    return dataclasses.replace(task, items=task.items[:questions])


def _settings(
    options: Options, about: dict[str, Any], tasks: list[Task], prompter: Prompter
) -> dict[str, Any]:
    """Everything that decides the results, the wording of prompts included."""
    protocol = {
        "mode": options.mode,
        "prompts": {task.name: prompter.described(task.items) for task in tasks},
        "rules": bench.rules(),
        "samples": options.samples,
        "questions": options.questions,
        "max_new_tokens": options.max_new_tokens,
        "sampling": to_json(options.sampling),
        "seed": options.seed,
        "batch": options.batch,
        "dtype": options.dtype,
        "intervals": "95 %; Wilson's of shares, 2,000 resamples of questions for lengths",
    }
    return {"model": about, "data": {t.name: t.sha256 for t in tasks}, "protocol": protocol}


def _note_unjudged(tasks: list[Task], results: dict[str, Any], judge: str) -> None:
    left = {task.name: results[task.name]["not_judged"] for task in tasks}
    if any(left.values()):
        counts = ", ".join(f"{count:,} of {name}" for name, count in left.items() if count)
        print(
            f"note: answers that are not judged: {counts}; answers/ says why, and the same command "
            + ("judges them again" if judge == "now" else "without --judge later judges them"),
            file=sys.stderr,
        )


def _measure(run: Run, results: dict[str, Any]) -> None:
    """Computes the cells that are missing, or that have answers which can be judged now."""
    ask = _asking(run)
    with progress() as show, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as judges:
        for task in run.tasks:
            if run.options.judge == "now" and results.get(task.name, {}).get("not_judged"):
                del results[task.name]
            make = partial(_task, run, task, ask, judges, show)
            compute(run.folder, results, task.name, make)


Place = tuple[int, int]  # question, from 0, and sample
Ask = Callable[[Task, list[Place]], Iterator[tuple[Place, Answer]]]


def _asking(run: Run) -> Ask:
    """Returns a function that answers questions of a task; it makes an engine on its first call.

    Tasks whose longest texts have about the same length share an engine: every length is compiled,
    and each step reads all the rows that there is room for.
    """
    options, prompter = run.options, run.prompter
    longest: dict[str, int] = {}
    for name, prompts in run.prompts.items():
        for prompt in prompts:
            check_vocabulary(prompt.ids, prompter.tokenizer, run.cfg.vocab)
        longest[name] = round_up(max(len(prompt.ids) for prompt in prompts))
    note_length(max(longest.values()) + options.max_new_tokens, run.cfg)
    room = {name: length + round_up(options.max_new_tokens) for name, length in longest.items()}
    made: dict[int, Engine] = {}

    def engine(task: Task) -> Engine:
        like = (room[task.name] - 1).bit_length()
        names = [name for name, length in room.items() if (length - 1).bit_length() == like]
        if like not in made:
            made.clear()  # which frees its memory
            made[like] = Engine(
                run.params,
                cfg=run.cfg,
                slots=min(options.batch, options.samples * sum(len(run.prompts[n]) for n in names)),
                length=max(room[name] for name in names),
                stops=max(8, len(prompter.stops)),
                how=How(dtype=options.dtype),
            )
        return made[like]

    def ask(task: Task, places: list[Place]) -> Iterator[tuple[Place, Answer]]:
        # By the task's name, so that answers are the same whatever else is asked.
        key = jax.random.fold_in(jax.random.key(options.seed), zlib.crc32(task.name.encode()))
        requests = (
            Request(
                run.prompts[task.name][question].ids,
                options.max_new_tokens,
                options.sampling,
                prompter.stops,
                jax.random.fold_in(jax.random.fold_in(key, question), sample),
            )
            for question, sample in places
        )
        for place, answer in answers(engine(task), requests):
            yield places[place], answer

    return ask


def _task(run: Run, task: Task, ask: Ask, judges: ThreadPoolExecutor, show: Show) -> dict[str, Any]:
    """Generates and grades all answers to a task, one line each, and returns its scores."""
    samples = run.options.samples
    every = [(question, s) for question in range(len(task.items)) for s in range(samples)]
    with Journal(run.folder / "answers" / f"{task.name}.jsonl", head=HEAD) as journal:
        lines = _lines(journal, set(every))
        waiting: collections.deque[Future] = collections.deque()

        def keep(most: int) -> None:
            while waiting and (len(waiting) > most or waiting[0].done()):
                line = waiting.popleft().result()
                if lines.get(_of(line)) != line:
                    journal.add(line)
                lines[_of(line)] = line
            show(f"{task.name}, answers", len(lines), len(every))

        if run.options.judge == "now":
            for line in [line for line in lines.values() if line["right"] is None]:
                waiting.append(judges.submit(_judged, run, task, line))
        rest = [place for place in every if place not in lines]
        for place, answer in ask(task, rest) if rest else ():
            waiting.append(judges.submit(_line, run, task, place, answer))
            keep(most=4 * run.options.batch)
        while waiting:
            keep(most=len(waiting) - 1)
    found = bench.figures(lines.values(), len(task.items), samples, seed=run.options.seed)
    asked = repeated(tuple(prompt.ids) for prompt in run.prompts[task.name])
    return {**found, "repeated": asked, "sha256": json_digest([lines[place] for place in every])}


def _line(run: Run, task: Task, place: Place, answer: Answer) -> dict[str, Any]:
    """The line of an answers file that records an answer."""
    item, prompt = task.items[place[0]], run.prompts[task.name][place[0]]
    thought, said = run.prompter.read(item, prompt, answer.ids.tolist())
    found = run.prompter.found(item, said)
    line = {
        **{"question": place[0], "sample": place[1], "thought": thought, "said": said},
        **{"found": found, "right": None, "why": "left for later"},
        **{"tokens": len(answer.ids), "end": answer.finish_reason},
    }
    later = run.options.judge == "later" and found is not None
    return line if later else _judged(run, task, line)


def _judged(run: Run, task: Task, line: dict[str, Any]) -> dict[str, Any]:
    """The line with its verdict."""
    item, allow = task.items[line["question"]], run.options.allow_code_execution
    judged = bench.judge(item, line["found"], allow_code=allow)
    return line | {"right": judged.right, "why": judged.why}


def _lines(journal: Journal, every: set[Place]) -> dict[Place, dict[str, Any]]:
    """The lines written so far; where an answer was judged again, its last line."""
    lines: dict[Place, dict[str, Any]] = {}
    for number, line in enumerate(journal.found, 1):
        if not isinstance(line, dict) or not all(key in line for key in KEYS):
            raise InputError(f"{journal.path} line {number} lacks one of {', '.join(KEYS)}")
        before = lines.get(_of(line))
        same = before is None or before | {key: line[key] for key in ("right", "why")} == line
        if _of(line) not in every or not same or (before and before["right"] is not None):
            raise InputError(
                f"{journal.path} line {number} holds an answer twice, or one to no question of "
                "this run"
            )
        lines[_of(line)] = line
    return lines


def _of(line: dict[str, Any]) -> Place:
    return line["question"], line["sample"]
