"""Reloads what pruning wrote, and verifies from its files what it promises."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import check_all_finite, flatten
from pangu_jax.models import decoder
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning.export import pad, widest, with_biases
from pangu_jax.pruning.prune import prune
from pangu_jax.task.watch import SILENT, Watch

RECORD = "check.safetensors"
# Projections that a repair rewrites; every other leaf must be a slice of the original.
REFITTED = ("attention/out/", "mlp/down/")


@partial(jax.jit, static_argnames="cfg")
def _logits(params, tokens, *, cfg):
    return decoder.logits(params, decoder.apply(params, tokens, cfg=cfg).hidden, cfg=cfg)


def logits(params: dict[str, Any], tokens: jax.Array, cfg: decoder.DecoderConfig) -> np.ndarray:
    """Scores of the next token, float32 [B, T, V]."""
    return np.asarray(_logits(params, tokens, cfg=cfg))


def sample(windows: np.ndarray) -> np.ndarray:
    """A few tokens on which two checkpoints are compared, int32 [2, 32] at most."""
    return np.ascontiguousarray(windows[:2, :32], np.int32)


def record(
    folder: Path, params: dict[str, Any], cfg: decoder.DecoderConfig, windows: np.ndarray
) -> None:
    """Writes a few tokens and the logits after them, to be compared by `check`."""
    tokens = sample(windows)
    found = logits(params, jnp.asarray(tokens), cfg)[:, -1]
    arrays = {"tokens": tokens, "logits": np.ascontiguousarray(found)}
    (folder / RECORD).write_bytes(save(arrays))  # save_file's errors are none of the system's


def check(folder: str | Path, source: str | Path | None = None, *, watch: Watch = SILENT) -> None:
    """Loads a pruned folder and verifies it.

    Args:
      folder: what `prune` wrote.
      source: the original checkpoint; with it the plan is replayed and every leaf that no repair
        touches is compared bit for bit.
      watch: is told what holds, a line each.

    Raises:
      InputError: something does not hold; names it.
    """
    folder = Path(folder)
    with watch.working(f"reading {folder}"):
        params, cfg = hf.load(folder)
    plan = plans.load(folder / "plan.json")
    check_all_finite(params, str(folder))
    watch.say(f"loads: {len(cfg.layers)} layers, width {cfg.width}, all values finite")
    if len(plan.layers) != len(cfg.layers) or len(plan.hidden) != cfg.width:
        raise InputError(
            f"{folder / 'plan.json'} keeps {len(plan.layers)} layers of width {len(plan.hidden)}, "
            f"the checkpoint has {len(cfg.layers)} of width {cfg.width}"
        )
    watch.say("plan: its indices are in range, its sizes are the checkpoint's")
    try:
        saved = load_file(folder / RECORD)
        tokens, want = saved["tokens"], saved["logits"]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{folder / RECORD} is missing or damaged: {error}") from error
    found = logits(params, jnp.asarray(tokens), cfg)[:, -1]
    difference = float(np.abs(found - want).max() / max(float(np.abs(want).max()), 1e-30))
    limit = 1e-4 if params["embed"]["table"].dtype == jnp.float32 else 3e-2
    if not difference <= limit:
        raise InputError(f"{folder}: logits differ from the recorded ones by {difference:.2g}")
    watch.say(f"logits: as recorded when it was written ({difference:.1g} relative)")
    if source is not None:
        with watch.working("replaying the plan"):
            number = _replay(params, cfg, plan, source)
        watch.say(f"replay: {number} leaves are bit for bit the slices that the plan says")


def _replay(params, cfg, plan, source) -> int:
    """How many leaves equal those that the plan cuts from the source."""
    original, original_cfg, _ = open_checkpoint(
        source, kind="decoder", by="`pangu-jax prune`", dtype=params["embed"]["table"].dtype
    )
    plans.check_hash(plan, original)
    want, want_cfg = prune(original, plan, cfg=original_cfg)
    if any(x != y for x, y in zip(want_cfg.layers, cfg.layers, strict=True)):
        want, want_cfg = pad(want, want_cfg, widest(cfg, False))
        if any(x.attention.query_bias for x in cfg.layers) or any(
            x.mlp.in_bias for x in cfg.layers
        ):
            want, want_cfg = with_biases(want, want_cfg)
    cut, have, number = flatten(want), flatten(params), 0
    for name, leaf in cut.items():
        if any(part in name for part in REFITTED):
            continue
        if name not in have or not np.array_equal(np.asarray(leaf), np.asarray(have[name])):
            raise InputError(f"{name} is not the slice of {source} that the plan says")
        number += 1
    return number
