"""Runs `pangu-jax latent eval`; its options are in `cli/options/latent_eval.py`."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.options.latent_eval import Options
from pangu_jax.cli.options.latent_problems import Problems
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.config import check_size, load_config
from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.thinker import written_out
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.ablation import ABLATIONS
from pangu_jax.reasoning.latent.held_out import load_hashes, not_among
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.score import Score, scores
from pangu_jax.reasoning.latent.slots import encode, markers_of
from pangu_jax.reasoning.latent.task import FILES, chance, located, test_problems


def main(options: Options) -> None:
    """Prints accuracy with its interval, tokens and thoughts, and the same for each ablation."""
    params, cfg, tokenizer, trained = opened(options)
    markers, chosen = markers_of(tokenizer), method(trained.method)
    name = options.task or trained.task
    problems = [encode(problem, tokenizer) for problem in test_set(options, trained)]
    step, most = latent.reached(options.run, trained), trained.max_new_tokens
    if options.max_new_tokens is not None:
        most = options.max_new_tokens
    with progress() as show:
        found = scores(
            params,
            problems,
            chosen,
            trained.phase,
            markers,
            cfg=cfg,
            max_new_tokens=most,
            batch=options.batch,
            ablations=ABLATIONS if options.ablations else (),
            progress=lambda kind, done, total: show(f"answering {kind}", done, total),
            how=How(dtype=options.dtype),
        )
    if options.json:
        known = {"method": trained.method, "task": name, "chance": chance(name)}
        known = {**known, "step": step, "steps": trained.steps}
        values = {kind: dataclasses.asdict(one) for kind, one in found.items()}
        print(json.dumps({**known, **values.pop(""), "ablations": values}))
        return
    print(described(found, trained.method, chance(name)))


def test_set(options: Problems, trained: latent.Trained) -> list[Problem]:
    """The problems to measure a run on; leaves out those it was trained on, with a note on stderr.

    Args:
      options: the run, and which problems.
      trained: how the run was trained, from its folder.

    Raises:
      InputError: no such problems, or the run was trained on all of them; or data is not read.
    """
    check_data(options.task, options.data)
    own = options.task is None and options.test is None
    test = trained.test if own else options.test
    task, test = located(options.task or trained.task, test, options.data, trains=False)
    tests = trained.tests if options.tests is None else options.tests
    return unseen(
        test_problems(task, test=test, tests=tests), load_hashes(options.run), options.run
    )


def check_data(task: str | None, data: str | None) -> None:
    """Raises InputError for a folder of data with a task that reads none."""
    if data is not None and task not in FILES:
        raise InputError(f"--data is the folder of --task {', '.join(FILES)}; another reads none")


def unseen(problems: Sequence[Problem], seen: np.ndarray, run: str) -> list[Problem]:
    """The problems that a run was not trained on; a note on stderr says how many are left out.

    Args:
      problems: problems to measure on.
      seen: uint64 [n], hashes of the run's training problems.
      run: its folder, for the messages.

    Raises:
      InputError: there are none.
    """
    kept = not_among(problems, seen)
    if problems and not kept:
        raise InputError(f"{run} was trained on all of the {len(problems)} problems; give others")
    if len(kept) < len(problems):
        gone = len(problems) - len(kept)
        print(
            f"{gone} of {len(problems)} problems left out: {run} was trained on them",
            file=sys.stderr,
        )
    return kept


def opened(options: Problems) -> tuple[Any, DecoderConfig, Tokenizer, latent.Trained]:
    """Parameters, configuration and tokenizer of a run of `latent train`, and how it thinks.

    A model that runs its layers in turns is returned as the decoder that computes the same, with
    the branch "thought" where thoughts are projected.

    Args:
      options: names the run's folder.

    Raises:
      InputError: the folder holds no such run, or no tokenizer or another than it was trained with
        (of older runs that is seen where ids are outside the vocabulary); or a number of problems
        is below 1.
    """
    if options.tests is not None:
        check_size("tests", options.tests)
    check_size("batch", options.batch)
    path = options.run
    if not (Path(path) / latent.RUN).is_file():
        raise InputError(f"{path} was not made by `pangu-jax latent train`: no {latent.RUN}")
    trained = load_config(latent.Trained, Path(path) / latent.RUN)
    with working(f"reading {path}"):
        params, cfg, found = open_checkpoint(
            path, kind=("decoder", "thinker"), by="`pangu-jax latent`"
        )
    params, cfg = written_out(params, cfg)
    tokenizer = load_tokenizer(found, checkpoint=path)
    latent.check_tokenizer(path, trained, tokenizer.digest, tokenizer.name)
    check_vocabulary(dataclasses.astuple(markers_of(tokenizer)), tokenizer, cfg.vocab)
    return params, cfg, tokenizer, trained


def described(found: Mapping[str, Score], name: str, guessing: float | None) -> str:
    """Scores in words, a line each.

    Args:
      found: scores by ablation, "" without one, as `score.scores` returns them.
      name: the method's name.
      guessing: the share of right answers by chance; None if it is not known.
    """
    lines = [f"{kind or name:10} {_described(one, guessing)}" for kind, one in found.items()]
    if told := repetitions(found[""].repeated, found[""].problems):
        lines.append(told)
    if method(name).feedback == "hidden":
        lines.append("the control of thoughts is the same training with --method pause")
    elif method(name).feedback:
        lines.append(
            "no control has as many slots and the teacher; --method pause --stage-steps 0 has no "
            "teacher"
        )
    return "\n".join(lines)


def repetitions(repeated: int, of: int) -> str:
    """What repeated questions mean to the figures, in a sentence; "" if there are none.

    Args:
      repeated: number of questions that occur earlier among them.
      of: number of questions.
    """
    if not repeated:
        return ""
    return (
        f"{repeated:,} of the {of:,} questions occur earlier among them; each counts, as if it "
        "were another one, so intervals are too narrow"
    )


def _described(found: Score, guessing: float | None) -> str:
    by_chance = "" if guessing is None else f", by chance {guessing:.1%}"
    layers = "" if found.layers.is_integer() else f", {found.layers:.1f} layers per token"
    return (
        f"accuracy {found.accuracy:.1%} ({found.low:.1%} to {found.high:.1%}) of "
        f"{found.problems}{by_chance}; {found.tokens:.1f} tokens written, "
        f"{found.thoughts:.0f} thoughts or pauses{layers}"
    )
