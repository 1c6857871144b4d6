"""Pangu Embedded: merges of two fine-tuned checkpoints, measured, and opened by transformers.

Source: "Pangu Embedded", arXiv 2505.22375, whose iterations end with a merge of checkpoints. Which
checkpoints and which rule is our reading: here two halves of the same questions, every rule.

    python -m experiments.pangu_embedded.merging --checkpoint SMOLLM2 --data gsm8k_train.jsonl.gz

The last questions are held out. For each seed the others are drawn into two halves, the checkpoint
is trained on the worked solutions of each, and the two are merged by
every rule (`pangu-jax merge`). All are measured on the held-out solutions, as a gate would, and
each merge is opened by transformers, if it is installed, and its logits are compared with ours.
Writes runs/<name>/results.json and report.md with a plot, and prints its table; a run that was
stopped goes on where it was.
"""

import dataclasses
import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.pangu_embedded.config import MERGES, RULES, Merging
from experiments.pangu_embedded.merging_report import merges, write_report
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli import merge
from pangu_jax.cli.stopping import script
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write
from pangu_jax.core.tree import content_hash
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document, records
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.data.tokenizer_save import tokenizer_files
from pangu_jax.models import decoder
from pangu_jax.nn.how import How
from pangu_jax.reasoning.merge_gate import read_gate
from pangu_jax.study import options
from pangu_jax.study.cells import begin, cell, say
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer_config import OptimizerConfig

BASED = ("task_arithmetic", "ties", "dare")  # rules that take the base


@dataclasses.dataclass(frozen=True)
class Run:
    """What every cell works on: the settings, the run's folder, the base, and what it learns."""

    experiment: Merging
    folder: Path
    checkpoint: str
    tokenizer: Tokenizer
    solutions: list[str]
    gate: Path


def main() -> None:
    parser = options.parser(__doc__, MERGES, data=None)
    parser.add_argument("--checkpoint", required=True, help="the decoder, a Hugging Face folder")
    parser.add_argument("--data", required=True, help="questions with worked solutions (GSM8K's)")
    given = parser.parse_args()
    experiment, folder = options.chosen(given, MERGES, "pangu_embedded_merging")
    solutions = read(given.data)
    if len(solutions) < experiment.held_out + 2:
        raise InputError(f"{given.data} has {len(solutions)} solutions, too few to hold out some")
    params, _, found = open_checkpoint(given.checkpoint, kind="decoder", by="this experiment")
    tokenizer = load_tokenizer(found, checkpoint=given.checkpoint)
    cells = begin(folder, experiment, data=sha256(given.data), parameters=content_hash(params))
    del params
    held = solutions[-experiment.held_out :]
    gate = _written(folder / "gate.jsonl", held)
    training = solutions[: -experiment.held_out]
    run = Run(experiment, folder, given.checkpoint, tokenizer, training, gate)
    cell(cells, "base", lambda: {"merged": _score(run, run.checkpoint)})
    for seed in experiment.seeds:
        cell(cells, f"halves/{seed}", partial(_halves, run, seed))
        for rule in RULES:
            cell(cells, f"{rule}/{seed}", partial(_merged, run, seed, rule))
    print(merges(experiment, cells.results))
    say(f"{write_report(folder, experiment, cells.results)} is the report")


def read(path: str) -> list[str]:
    """Each question with its worked solution, as one text."""
    return [
        f"Question: {record['question']}\nAnswer: {record['answer']}"
        for _, _, record in records(path, "answer")
    ]


def _written(path: Path, texts: list[str]) -> Path:
    with atomic_write(path) as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


def _halves(run: Run, seed: int) -> dict[str, Any]:
    """Bits per byte of what each half of the solutions makes of the base."""
    order = np.random.default_rng(seed).permutation(len(run.solutions))
    scores = []
    for place, out in enumerate(_folders(run, seed)):
        _train(run, seed, out, [run.solutions[i] for i in order[place::2]])
        scores.append(_score(run, str(out)))
    return {"scores": scores}


def _folders(run: Run, seed: int) -> list[Path]:
    return [run.folder / f"seed{seed}-{name}" for name in "ab"]


def _score(run: Run, path: str) -> float:
    """Bits per byte of the held-out solutions."""
    params, cfg, _ = open_checkpoint(path, kind="decoder", by="this experiment")
    gate = read_gate(run.gate, run.tokenizer, length=256, batch=run.experiment.batch)
    return gate.score(params, cfg)


def _train(run: Run, seed: int, out: Path, texts: list[str]) -> None:
    """Makes a run folder, whose training goes on where it was."""
    experiment = run.experiment
    params, cfg, _ = open_checkpoint(
        run.checkpoint, kind="decoder", by="this experiment", dtype="float32"
    )
    solutions = [Document(str(place), text) for place, text in enumerate(texts)]
    source = PackedTokens(tokenize(solutions, run.tokenizer), experiment.length)
    train_language(
        cfg,
        lambda step: drawn_batches(source, batch=experiment.batch, seed=seed, start_step=step),
        out,
        loop=LoopConfig(experiment.steps, seed=seed, checkpoint_every=experiment.steps),
        params=params,
        optimizer=OptimizerConfig(learning_rate=experiment.learning_rate),
        documents=source.most_documents,
        how=How(dtype=experiment.dtype),
        label=out.name,
    )
    for file, content in tokenizer_files(run.tokenizer).items():
        (out / file).write_bytes(content)


def _merged(run: Run, seed: int, rule: str) -> dict[str, Any]:
    out = run.folder / f"seed{seed}-{rule}"
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped after it was written
    merge.main(
        merge.Options(
            checkpoints=tuple(map(str, _folders(run, seed))),
            out=str(out),
            base=run.checkpoint if rule in BASED else None,
            method=rule,
            seed=seed,
            **RULES[rule],
        )
    )
    found = {"merged": _score(run, str(out))}
    found |= _opened_by_transformers(str(out), run.solutions[:4])
    shutil.rmtree(out)
    return found


def _opened_by_transformers(folder: str, texts: list[str]) -> dict[str, Any]:
    """The greatest difference of its logits from ours, as a share of the greatest logit."""
    if importlib.util.find_spec("transformers") is None or not importlib.util.find_spec("torch"):
        say("transformers or torch is not installed, so the merge is not opened by it")
        return {"difference": None, "same_tokens": None}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokens = AutoTokenizer.from_pretrained(folder)
    params, cfg, found = open_checkpoint(folder, kind="decoder", by="this experiment")
    tokenizer = load_tokenizer(found, checkpoint=folder)
    forward = jax.jit(lambda p, x: decoder.apply(p, x, cfg=cfg).hidden[0] @ decoder.head_kernel(p))
    same, differences = True, []
    for text in texts:
        ids = tokenizer.encode(text)
        same &= ids == their_tokens(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).logits[0].numpy()
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(forward(params, np.array([ids], np.int32)), np.float32)
        differences.append(float(np.abs(logits - wanted).max() / np.abs(wanted).max()))
    return {"difference": max(differences), "same_tokens": same}


if __name__ == "__main__":
    script(main)
