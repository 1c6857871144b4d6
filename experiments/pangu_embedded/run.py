"""Pangu Embedded: what a preference model and a model as a judge know of right and wrong answers.

Source: "Pangu Embedded", arXiv 2505.22375, whose rewards have a preference model and an LLM as
sources beside rules. How they are made is our reading: of the text only a part could be read.

    python experiments/pangu_embedded/run.py --checkpoint SMOLLM2 --data distill_gsm8k.jsonl.gz

The data has, for each question, chains of thought of several teachers ({"question", "answer",
"cot": {name: text}}). Rules tell which are right (`eval.answers`); a question counts that has both.
Measured on questions that the head was not trained on: how often it scores the right one higher,
and the same of the shorter one and of the better teacher's, which take no look at the answer; and
how often the evaluator, asked about each, says what the rules say. Writes
runs/<name>/results.json and report.md with a plot, and prints its table; a run that was stopped
goes on where it was.
"""

import collections
import dataclasses
from functools import partial
from typing import Any

import numpy as np

from experiments.pangu_embedded.config import ASKED, PRESETS, Experiment
from experiments.pangu_embedded.report import judges, write_report
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.progress import progress
from pangu_jax.cli.stopping import script
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import content_hash
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.text import records
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.eval import answers
from pangu_jax.eval.pass_at_k import Estimate, wilson
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.reasoning.llm_judge import agreement, make_asker
from pangu_jax.reasoning.preference import Pair, features, fit
from pangu_jax.reasoning.reward import Sample
from pangu_jax.reasoning.reward_sources import judged_by_model
from pangu_jax.study import options
from pangu_jax.study.cells import begin, cell, say


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on: one pair per question, their teachers, and the gold answers."""

    experiment: Experiment
    checkpoint: str
    params: Any
    cfg: DecoderConfig
    tokenizer: Tokenizer
    pairs: list[Pair]
    teachers: list[tuple[str, str]]
    gold: list[str]


def main() -> None:
    parser = options.parser(__doc__, PRESETS, data=None)
    parser.add_argument("--checkpoint", required=True, help="the decoder, with its chat template")
    parser.add_argument("--data", required=True, help="a file of questions and chains of thought")
    given = parser.parse_args()
    experiment, folder = options.chosen(given, PRESETS, "pangu_embedded")
    pairs, teachers, gold = read(given.data, experiment.questions)
    params, cfg, found = open_checkpoint(given.checkpoint, kind="decoder", by="this experiment")
    tokenizer = load_tokenizer(found, checkpoint=given.checkpoint)
    run = Run(experiment, given.checkpoint, params, cfg, tokenizer, pairs, teachers, gold)
    settings = {"parameters": content_hash(params), "data": sha256(given.data)}
    cells = begin(folder, experiment, **settings)
    if not all(f"preference/{seed}" in cells.results for seed in experiment.seeds):
        sides = tuple(_features(run, side) for side in ("chosen", "rejected"))
        for seed in experiment.seeds:
            cell(cells, f"preference/{seed}", partial(_preference, run, sides, seed))
    for seed in experiment.seeds:
        cell(cells, f"teacher/{seed}", partial(_teacher, run, seed))
    cell(cells, "evaluator", partial(_evaluator, run))
    print(judges(experiment, cells.results))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def read(path: str, most: int | None) -> tuple[list[Pair], list[tuple[str, str]], list[str]]:
    """A right and a wrong answer to each question that has both, whose they are, and the gold."""
    pairs, teachers, gold = [], [], []
    seen: set[str] = set()  # a question that comes again could be held out and trained on
    for _, where, record in records(path, "question"):
        cot, wanted = record.get("cot"), record.get("answer")
        if not isinstance(cot, dict) or not all(isinstance(x, str) for x in cot.values()):
            raise InputError(f"{where} has no object of texts under the key 'cot'")
        if not isinstance(wanted, str) or len(pairs) == most or record["question"] in seen:
            continue
        seen.add(record["question"])
        told = {_right(wanted, cot[name]): name for name in sorted(cot, reverse=True)}
        if {True, False} <= told.keys():
            pairs.append(Pair(record["question"], cot[told[True]], cot[told[False]]))
            teachers.append((told[True], told[False]))
            gold.append(wanted)
    if len(pairs) < 2:
        raise InputError(f"{path} has {len(pairs)} questions with a right and a wrong answer")
    return pairs, teachers, gold


def split(run: Run, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of pairs to train on and of those that are held out."""
    order = np.random.default_rng(seed).permutation(len(run.pairs))
    held = max(1, round(run.experiment.held_out * len(order)))
    return order[held:], order[:held]


def _right(gold: str, text: str) -> bool | None:
    return answers.equal(gold, answers.extract(text, "number"), "number")


def _features(run: Run, side: str) -> np.ndarray:
    rows = [
        [*run.tokenizer.begin, *run.tokenizer.encode(f"{p.prompt}\n{getattr(p, side).strip()}")]
        for p in run.pairs
    ]
    how = How(dtype=run.experiment.dtype)
    with progress() as show:
        shown = partial(show, f"reading {side}")
        rest = {"cfg": run.cfg, "batch": run.experiment.batch, "how": how, "progress": shown}
        return features(run.params, rows, **rest)


def _preference(run: Run, sides: tuple[np.ndarray, np.ndarray], seed: int) -> dict[str, Any]:
    there, held = split(run, seed)
    experiment = run.experiment
    how = {"steps": experiment.steps, "decay": experiment.decay, "seed": seed}
    model = fit(sides[0][there], sides[1][there], **how)
    shorter = [np.sign(len(run.pairs[i].rejected) - len(run.pairs[i].chosen)) for i in held]
    return {
        "trained on": len(there),
        "held out": _shown(model.agreement(sides[0][held], sides[1][held])),
        "seen": _shown(model.agreement(sides[0][there], sides[1][there])),
        "the shorter": _shown(wilson((np.array(shorter) + 1) / 2)),
    }


def _teacher(run: Run, seed: int) -> dict[str, Any]:
    """Which teacher's answer it is, without a look at it: who was right more often wins."""
    there, held = split(run, seed)
    wins: collections.Counter[str] = collections.Counter()
    for right, wrong in (run.teachers[i] for i in there):
        wins[right] += 1
        wins[wrong] -= 1
    gaps = [wins[right] - wins[wrong] for right, wrong in (run.teachers[i] for i in held)]
    return {"held out": _shown(wilson((np.sign(gaps) + 1) / 2))}


def _evaluator(run: Run) -> dict[str, Any]:
    """Both answers of each pair, so always saying the same has one half."""
    _, held = split(run, run.experiment.seeds[0])
    asked = [
        (Sample(p.prompt, text, text, gold=gold if told else ""), right)
        for i in held[: run.experiment.judged]
        for p, gold in [(run.pairs[i], run.gold[i])]
        for text, right in ((p.chosen, True), (p.rejected, False))
        for told in (False, True)
    ]
    ask = make_asker(
        run.params,
        cfg=run.cfg,
        tokenizer=run.tokenizer,
        template=choose_template("auto", run.checkpoint, run.tokenizer),
        max_new_tokens=run.experiment.max_new_tokens,
        slots=run.experiment.batch,
        how=How(dtype=run.experiment.dtype),
    )
    scores = judged_by_model(ask)([sample for sample, _ in asked])
    found = {}
    for name, told in ASKED.items():
        of = [i for i, (sample, _) in enumerate(asked) if bool(sample.gold) is told]
        one = agreement([scores[i] for i in of], np.array([asked[i][1] for i in of]))
        yes = np.mean([scores[i].value for i in of if scores[i].value is not None] or [np.nan])
        found[name] = {"agrees": _shown(one.share), "failed": one.failed, "says yes": float(yes)}
    return found


def _shown(found: Estimate) -> list[float | int]:
    return [found.value, found.low, found.high, found.questions]


if __name__ == "__main__":
    script(main)
