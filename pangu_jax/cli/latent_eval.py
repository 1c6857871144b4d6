"""Measures the answers of a model that `latent train` made, also with its thoughts exchanged."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.config import check_size, load_config
from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.ablation import ABLATIONS, ablation
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.registry import method
from pangu_jax.reasoning.latent.score import score
from pangu_jax.reasoning.latent.slots import encode, markers_of
from pangu_jax.reasoning.latent.task import chance, test_problems


@dataclass(frozen=True)
class Options:
    """Which run, on which problems."""

    run: Annotated[str, tyro.conf.Positional]
    """A folder that `pangu-jax latent train` wrote."""
    task: str | None = None
    """mult4x4 (any mult<D>x<D>), prosqa, or a .jsonl file; None is the task of the run."""
    test: str | None = None
    """A file of problems to measure on; without it they are drawn, or the task's last ones."""
    tests: int = 500
    """Most problems to measure on."""
    batch: int = 32
    """Problems answered at once."""
    max_new_tokens: int | None = None
    """Most tokens that are written; None is enough for the task of the run."""
    ablations: bool = True
    """Whether the thoughts are also exchanged for zeros, noise, another problem's, pauses."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and cache."""
    json: bool = False
    """Print one JSON object instead of text."""


def main(options: Options) -> None:
    """Prints accuracy with its interval, tokens and thoughts, and the same for each ablation."""
    check_size("tests", options.tests)
    check_size("batch", options.batch)
    params, cfg, tokenizer, trained = opened(options.run)
    markers, chosen = markers_of(tokenizer), method(trained.method)
    name = options.task or trained.task
    problems = [
        encode(x, tokenizer) for x in test_problems(name, test=options.test, tests=options.tests)
    ]
    thinks = chosen.thoughts(trained.phase) > 0
    how, results = How(dtype=options.dtype), {}
    with progress() as show:
        for kind in ("", *(ABLATIONS if thinks and options.ablations else ())):
            written = solve(
                params,
                problems,
                chosen,
                trained.phase,
                markers,
                cfg=cfg,
                max_new_tokens=options.max_new_tokens or trained.max_new_tokens,
                batch=options.batch,
                exchange=ablation(kind, params, markers, cfg=cfg, how=how) if kind else None,
                progress=lambda done, total, kind=kind: show(f"answering {kind}", done, total),
                how=how,
            )
            results[kind] = dataclasses.asdict(score(written, problems))
    if options.json:
        ablated = {kind: found for kind, found in results.items() if kind}
        known = {"method": trained.method, "task": name, "chance": chance(name)}
        print(json.dumps({**known, **results[""], "ablations": ablated}))
        return
    for kind, found in results.items():
        print(f"{kind or trained.method:10} {described(found, chance(name))}")


def opened(path: str) -> tuple[Any, DecoderConfig, Tokenizer, latent.Trained]:
    """Parameters, configuration and tokenizer of a run of `latent train`, and how it thinks.

    Raises:
      InputError: the folder holds no such run.
    """
    if not (Path(path) / latent.RUN).is_file():
        raise InputError(f"{path} was not made by `pangu-jax latent train`: no {latent.RUN}")
    trained = load_config(latent.Trained, Path(path) / latent.RUN)
    with working(f"reading {path}"):
        params, cfg, found = open_checkpoint(path, kind="decoder", by="`pangu-jax latent`")
    return params, cfg, load_tokenizer(found, checkpoint=path), trained


def described(found: dict[str, Any], guessing: float | None) -> str:
    """A score in words."""
    by_chance = "" if guessing is None else f", by chance {guessing:.1%}"
    return (
        f"accuracy {found['accuracy']:.1%} ({found['low']:.1%} to {found['high']:.1%}) of "
        f"{found['problems']}{by_chance}; {found['tokens']:.1f} tokens written, "
        f"{found['thoughts']:.0f} thoughts or pauses"
    )
