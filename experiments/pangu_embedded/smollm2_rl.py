"""Pangu Embedded: a small chat model learns word problems from solutions, then by rewards.

Source: "Pangu Embedded", arXiv 2505.22375, whose reinforcement learning follows fine-tuning; which
model, which questions and which rewards is our reading. GRPO: arXiv 2402.03300.

    python -m experiments.pangu_embedded.smollm2_rl --model SMOLLM2 --data FOLDER --preset smoke

The model is asked the tests of SVAMP, MultiArith, ASDiv and GSM8K as `pangu-jax bench` asks
(`word_problems` says what is tested and trained on, and keeps them apart). It then learns from
worked solutions, is asked again, goes on by rewards on training questions, 1 for the right answer
and 0 for another (once for each of --seeds), and is asked again. The
result is written in the model's layout and opened by transformers, whose greedy answers are
compared with ours token by token.

Writes runs/<name>/results.json, report.md and a plot, and prints the report. A run that was stopped
keeps its cells, and goes on within training; a measurement begins again. --minutes ends it before
the first cell that would begin after them.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pangu_embedded import smollm2_report
from experiments.pangu_embedded.config import WORD_PROBLEMS
from experiments.pangu_embedded.config import WordProblems as Experiment
from experiments.pangu_embedded.smollm2_transformers import compared
from experiments.pangu_embedded.word_problems import Drawn, Problem, WordProblems, read
from experiments.pangu_embedded.worked_solutions import Solutions
from pangu_jax.checkpoint import hf, store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.stopping import script
from pangu_jax.core.config import to_json
from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import content_hash
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.data.tokenizer_save import companions
from pangu_jax.decode.engine import Answer, Engine, Request, answers
from pangu_jax.losses.policy import GRPO
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.reasoning.bench import judge
from pangu_jax.reasoning.bench_prompts import Prompt, Prompter
from pangu_jax.reasoning.rl import RlConfig, train
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.study import options, report
from pangu_jax.study.cells import begin, cell, in_time, say
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig

SFT = "sft-model"


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on.

    Attributes:
      experiment: the settings.
      folder: of the run.
      model: the checkpoint that it begins with.
      cfg: that model.
      prompter: how it is asked.
      prompts: what it reads, by the question.
      problems: what it is tested on and learns from.
      length: tokens that a slot has room for.
    """

    experiment: Experiment
    folder: Path
    model: str
    cfg: DecoderConfig
    prompter: Prompter
    prompts: dict[str, Prompt]
    problems: WordProblems
    length: int


def main() -> None:
    parser = options.parser(
        __doc__,
        WORD_PROBLEMS,
        data=None,
        seeds="of reinforcement learning, 0 if left out; more may come",
        minutes="no cell is begun after so long",
    )
    parser.set_defaults(seeds=[0])
    parser.add_argument("--model", required=True, help="a chat model, a Hugging Face folder")
    parser.add_argument("--data", required=True, help="the folder with the questions")
    parser.add_argument(
        "--template", default="auto", help="how dialogues are written; auto takes the model's own"
    )
    parser.add_argument("--updates", type=options.positive, help="of reinforcement learning")
    given = parser.parse_args()
    experiment, folder = options.chosen(given, WORD_PROBLEMS, "pangu_embedded_smollm2_rl")
    run, parameters = _begin(experiment, folder, given)
    questions = json_digest(to_json(run.problems))
    settings = {"questions": questions, "parameters": parameters, "template": given.template}
    cells = begin(folder, experiment, device=report.machine(), **settings)
    for name, make in in_time(cells, _all(run, given.seeds), given.minutes):
        cell(cells, name, make, shown=lambda found: found["shown"])
        _clear(run, name)
        # Each time, as a signal may end the next cell.
        smollm2_report.write(folder, cells.results)
    print(smollm2_report.text(cells.results))


def _begin(experiment: Experiment, folder: Path, given: argparse.Namespace) -> tuple[Run, str]:
    """The run, and a hash of the parameters that it begins with."""
    model, problems = given.model, read(given.data, asdiv_tested=experiment.asdiv_tested)
    tests = {name: items[: experiment.questions] for name, items in problems.tests.items()}
    problems = dataclasses.replace(problems, tests=tests)
    params, cfg, found = open_checkpoint(model, kind="decoder", by="this experiment")
    tokenizer = load_tokenizer(found, checkpoint=model)
    prompter = Prompter(tokenizer, "chat", choose_template(given.template, model, tokenizer))
    asked = [item for items in problems.tests.values() for item in items]
    asked += [problem.item for pool in problems.training.values() for problem in pool]
    prompts = {item.question: prompter.prompt(item) for item in asked}
    longest = max(len(prompt.ids) for prompt in prompts.values())
    length = -(-(longest + experiment.max_new_tokens) // 64) * 64
    run = Run(experiment, folder, model, cfg, prompter, prompts, problems, length)
    if empty := [name for name, pool in _askable(run).items() if not pool]:
        raise InputError(f"no question of {empty[0]} leaves room for an answer in a row")
    return run, content_hash(params)


def _all(run: Run, seeds: Sequence[int]):
    """Every cell's name, and what computes it."""
    yield "split", partial(_split, run)
    yield "base", partial(_accuracy, run, run.model)
    yield "sft", partial(_sft, run)
    yield "sft accuracy", partial(_accuracy, run, run.folder / SFT)
    for seed in seeds:
        yield f"rl/{seed}", partial(_rl, run, seed)
        yield f"rl accuracy/{seed}", partial(_accuracy, run, _trained(run, seed))
        yield f"transformers/{seed}", partial(_compared, run, seed)


def _clear(run: Run, name: str) -> None:
    """Removes the training of a cell that is saved.

    Not sooner, as a kill in between would have the cell trained again; and again where one left
    something.
    """
    kind, _, seed = name.partition("/")
    if kind == "sft" and (run.folder / "sft").exists():
        store.discard(run.folder / "sft")
    if kind == "rl" and _training(run, int(seed)).exists():
        shutil.rmtree(_training(run, int(seed)))


def _training(run: Run, seed: int) -> Path:
    return run.folder / f"rl-{seed}"


def _trained(run: Run, seed: int) -> Path:
    return run.folder / f"rl-{seed}-model"


def _split(run: Run) -> dict[str, Any]:
    tests, training = run.problems.tests, run.problems.training
    found = {
        "tests": {name: len(items) for name, items in tests.items()},
        "training": {name: len(pool) for name, pool in training.items()},
        "dropped": run.problems.dropped,
    }
    return found | {"shown": str(found)}


def _opened(path: str | Path) -> Any:
    return open_checkpoint(path, kind="decoder", by="this experiment", dtype="float32")[0]


def _write(run: Run, params: Any, folder: Path) -> None:
    """A checkpoint in the layout of the one that the run begins with, or as Llama's."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped after it was written
    hugging = (Path(run.model) / "config.json").is_file()
    hf.save(
        params,
        run.cfg,
        folder,
        family=hf.read_config(run.model)[1] if hugging else "llama",
        source=run.model if hugging else None,
        companions=companions(run.model, run.model) if hugging else None,
    )


def _accuracy(run: Run, path: str | Path) -> dict[str, Any]:
    """Greedy answers to the tests: which are right, as digits, and what they are like."""
    experiment, prompter = run.experiment, run.prompter
    asked = [(name, item) for name, items in run.problems.tests.items() for item in items]
    prompts = [run.prompts[item.question] for _, item in asked]
    engine = Engine(
        _opened(path),
        cfg=run.cfg,
        slots=experiment.slots,
        length=run.length,
        stops=len(prompter.stops),
        how=How(dtype=experiment.dtype),
    )
    most = experiment.max_new_tokens
    requests = [Request(prompt.ids, most, stop_ids=prompter.stops) for prompt in prompts]
    said: dict[str, list[Any]] = {name: [] for name in run.problems.tests}
    for place, answer in sorted(answers(engine, requests), key=lambda found: found[0]):
        name, item = asked[place]
        found = prompter.found(item, prompter.read(item, prompts[place], answer.ids.tolist())[1])
        said[name].append((judge(item, found).right is True, found is not None, answer))
    cell = {name: _figures(found) for name, found in said.items()}
    shares = [f"{name} {np.mean(list(map(int, cell[name]['right']))):.3f}" for name in cell]
    return cell | {"shown": ", ".join(shares)}


def _figures(said: list[tuple[bool, bool, Answer]]) -> dict[str, Any]:
    return {
        "right": "".join("01"[right] for right, _, _ in said),
        "tokens": float(np.mean([len(answer.ids) for _, _, answer in said])),
        "no answer": int(sum(not found for _, found, _ in said)),
        "cut off": int(sum(answer.finish_reason == "length" for _, _, answer in said)),
    }


def _sft(run: Run) -> dict[str, Any]:
    """Learns from the worked solutions, and writes the model."""
    experiment, prompter = run.experiment, run.prompter
    examples = [
        (
            run.prompts[problem.item.question].ids,
            [*prompter.tokenizer.encode(problem.solution), prompter.stops[0]],
        )
        for pool in run.problems.training.values()
        for problem in pool
    ]
    source = Solutions(examples, experiment.row_length)
    steps, folder = experiment.sft_steps, run.folder / "sft"
    params = train_language(
        run.cfg,
        lambda step: drawn_batches(source, batch=experiment.sft_batch, start_step=step),
        folder,
        loop=LoopConfig(steps, checkpoint_every=steps, keep=1),
        params=_opened(run.model),
        optimizer=OptimizerConfig(learning_rate=experiment.sft_rate),
        documents=source.most,
        # A loop over the layers: the run is shorter than compiling without one would take.
        how=How(dtype=experiment.dtype, unroll=1),
        label="sft",
    )
    _write(run, params, run.folder / SFT)
    rows, left_out = len(source), source.left_out
    shown = f"{steps} steps, {steps * experiment.sft_batch / rows:.2f} epochs of {rows} rows"
    return {"rows": rows, "left out": left_out, "shown": f"{shown}, {left_out} left out"}


def _rl(run: Run, seed: int) -> dict[str, Any]:
    """Goes on by rewards, and writes the model."""
    experiment, prompter, seen = run.experiment, run.prompter, []
    drawn = Drawn(_askable(run), seed)
    settings = OptimizerConfig(
        learning_rate=experiment.rl_rate, schedule="constant", weight_decay=0.0
    )

    def reward(number: int, found: Sequence[Answer]) -> list[float]:
        item = drawn.of(number)
        prompt = run.prompts[item.question]
        said = [prompter.read(item, prompt, answer.ids.tolist())[1] for answer in found]
        return [float(judge(item, prompter.found(item, text)).right is True) for text in said]

    def update(line: dict[str, Any]) -> None:
        seen.append(line)
        if line["step"] % 5 == 0:
            say(f"seed {seed}, update {line['step']}: {_words(line)}")

    plan = ScheduleConfig(
        experiment.staleness, experiment.batch, experiment.group, slots=experiment.slots
    )
    state = train(
        _opened(run.folder / SFT),
        lambda number: run.prompts[drawn.of(number).question].ids,
        reward,
        model=run.cfg,
        cfg=RlConfig(
            plan,
            GRPO,
            experiment.updates,
            length=run.length,
            max_new_tokens=experiment.max_new_tokens,
            stop_ids=prompter.stops,
            accumulate=experiment.accumulate,
            save_every=experiment.save_every,
            seed=seed,
        ),
        optimizer=make_optimizer(settings, experiment.updates),
        folder=_training(run, seed),
        on_update=update,
        how=How(dtype=experiment.dtype),
    )
    _write(run, state.params, _trained(run, seed))
    names = ("reward", "tokens", "masked_groups", "truncated", "kl_behavior", "grad_norm")
    return {
        **{name: [round(line[name], 5) for line in seen] for name in names},
        "ages": np.bincount([age for line in seen for age in line["ages"]]).tolist(),
        "seconds of updates": sum(line["seconds"] for line in seen),
        "shown": _words(seen[-1]),
    }


def _askable(run: Run) -> dict[str, list[Problem]]:
    """The training questions that have room for the longest answer in a row."""
    room = run.experiment.row_length - run.experiment.max_new_tokens
    return {
        name: [problem for problem in pool if len(run.prompts[problem.item.question].ids) <= room]
        for name, pool in run.problems.training.items()
    }


def _words(line: dict[str, Any]) -> str:
    return (
        f"reward {line['reward']:.3f}, {line['tokens']:.0f} tokens, {line['masked_groups']:.0%} of "
        f"the groups masked, {line['seconds']:.1f} s"
    )


def _compared(run: Run, seed: int) -> dict[str, Any]:
    """Beside transformers, as many questions of each test."""
    tests, many = list(run.problems.tests.values()), run.experiment.compared
    turns = [items[place] for place in range(many) for items in tests if place < len(items)]
    asked = turns[:many]
    found = compared(
        _trained(run, seed),
        [run.prompter.text(item) for item in asked],
        [run.prompts[item.question].ids for item in asked],
        stops=run.prompter.stops,
        max_new_tokens=run.experiment.max_new_tokens,
        length=run.length,
    )
    return found | {"shown": f"{found['same']} of {found['answers']} the same"}


if __name__ == "__main__":
    script(main)
