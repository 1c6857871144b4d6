"""Runs `pangu-jax merge`; its options are in `cli/options/merge.py`."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.options.merge import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import new_folder
from pangu_jax.core.spec import count
from pangu_jax.data.tokenizer_save import companions
from pangu_jax.models import registry
from pangu_jax.nn.how import How
from pangu_jax.reasoning.merge_checkpoints import Source, merged, open_source, tokens_of
from pangu_jax.reasoning.merge_gate import Gate, read_gate
from pangu_jax.reasoning.merge_recipe import Recipe

RECIPE = "merge.json"


def main(options: Options) -> None:
    """Merges, measures, and writes the merge or says why not."""
    recipe = _recipe(options)
    recipe.check(len(options.checkpoints), options.base is not None)
    sources = [_opened(path) for path in options.checkpoints]
    base = None if options.base is None else _opened(options.base)
    params = merged(sources, recipe, base=base, dtype=options.dtype)
    first = sources[0] if base is None else base
    _note_tokens([*sources, *([] if base is None else [base])])
    gate = _gate(options, first)
    with new_folder(options.out) as folder:
        paths = dict.fromkeys([*options.checkpoints, *([options.base] if options.base else [])])
        scores = {path: _score(gate, path, path) for path in paths} if gate else {}
        name = _write(params, first, options, folder)
        if gate:
            scores[options.out] = _score(gate, str(folder), options.out)
        values = {"checkpoints": options.checkpoints, "base": options.base, "gate": options.gate}
        shown = {path: None if math.isnan(score) else score for path, score in scores.items()}
        values |= {**dataclasses.asdict(recipe), "unit": gate and gate.unit, "scores": shown}
        (folder / RECIPE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if gate:
            _judge(gate, scores, options)
    print(f"{options.out} holds {count(registry.spec(first.cfg)):,} parameters as {name}")


def _recipe(options: Options) -> Recipe:
    scale = options.scale
    if scale is None:
        scale = 0.5 if options.method == "slerp" else 1.0
    if options.tolerance < 0:
        raise InputError(f"tolerance must be at least 0, got {options.tolerance:g}")
    rest = (options.density, options.weights, options.rescale, options.seed)
    return Recipe(options.method, scale, *rest)


def _opened(path: str) -> Source:
    with working(f"reading {path}"):
        return open_source(path)


def _note_tokens(sources: list[Source]) -> None:
    without = [source.path for source in sources if tokens_of(source) is None]
    if without:
        print(
            f"note: {', '.join(without)} holds no tokenizer, so whether its ids mean the same is "
            "not known",
            file=sys.stderr,
        )


def _gate(options: Options, first: Source) -> Gate | None:
    if options.gate is None:
        return None
    tokenizer = tokens_of(first)
    if tokenizer is None:
        raise InputError(f"{first.path} holds no tokenizer, which a gate takes")
    return read_gate(options.gate, tokenizer, length=options.length, batch=options.batch, how=How())


def _score(gate: Gate, path: str, shown: str) -> float:
    params, cfg, _ = open_checkpoint(path, kind="decoder", by="a gate")
    with progress() as show:
        found = gate.score(params, cfg, lambda done, total: show(f"measuring {shown}", done, total))
    print(f"{found:<10.4f}{shown}")
    return found


def _write(params: Any, first: Source, options: Options, folder: Path) -> str:
    own = first.family is not None
    with progress() as show:
        return hf.save_first(
            params,
            first.cfg,
            folder,
            families=[first.family] if own else hf.families_of(first.cfg),
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_gb * 1e9,
            source=first.path if own else None,
            companions=companions(first.tokenizer, first.path),
            progress=lambda done, total: show("merging, bytes", done, total),
        )


def _judge(gate: Gate, scores: dict[str, float], options: Options) -> None:
    """Exits with status 1, before anything is written, if the merge does not pass the gate."""
    singles = {name: score for name, score in scores.items() if name != options.out}
    best, found = gate.best(singles), scores[options.out]
    print(f"{gate.unit} on {options.gate}; the best single checkpoint is {best}")
    if not gate.passes(found, singles[best], options.tolerance):
        print(
            f"the merge is not taken: {found:.4f} {gate.unit} is worse than {singles[best]:.4f} of "
            f"{best}, so take that; nothing was written",
            file=sys.stderr,
        )
        raise SystemExit(1)
