"""Prunes a language model: a checkpoint that loads elsewhere, a plan to replay, a report."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint import hf
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.files import new_folder
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.spec import nbytes
from pangu_jax.core.tree import check_all_finite
from pangu_jax.data.calibration import cut_windows
from pangu_jax.data.packing import head, tokenize
from pangu_jax.data.text import documents
from pangu_jax.data.tokenizer import check_vocabulary, load_tokenizer
from pangu_jax.data.tokenizer_save import companions
from pangu_jax.eval.perplexity import measure_windows
from pangu_jax.pruning import export, repair, stats
from pangu_jax.pruning import plan as plans
from pangu_jax.pruning.absorb import absorb
from pangu_jax.pruning.allocate import Limits, Target, parse
from pangu_jax.pruning.compress import Result, compress, text_hash
from pangu_jax.pruning.plan import Plan
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.task import prune_check, prune_report
from pangu_jax.task.job import Job, open_job
from pangu_jax.task.model import Model, checkpoint_of, expect, load
from pangu_jax.task.options import PruneOptions
from pangu_jax.task.watch import SILENT, Watch


@dataclasses.dataclass(frozen=True)
class Text:
    """Calibration and evaluation windows.

    Attributes:
      calibration: int32 [n, T].
      evaluation: int32 [m, T], after the calibration windows.
      name: of the text.
      head: what each window begins with, as shown to the user.
    """

    calibration: np.ndarray
    evaluation: np.ndarray
    name: str
    head: str


def prune(
    model: Model,
    out: str | Path,
    *,
    target: str | None = None,
    calib: str | None = None,
    **options: Any,
) -> Model:
    """Writes a smaller model that loads elsewhere, as `pangu-jax prune` does; gives it back.

        >>> small = pj.prune(m, "small", target="params=0.8", calib="text.txt")

    Args:
      model: a language model of a run folder or a Hugging Face folder.
      out: a new folder for the pruned checkpoint, plan.json and report.md.
      target: what is left: "params=0.8", "flops=0.7", or axes: "ffn=0.5,groups=0.75,layers=24".
      calib: calibration text: a file or folder of .txt or .jsonl; "stdlib".
      **options: the others of `task.options.PruneOptions`, such as `method` and `repair`.

    Raises:
      InputError: the model cannot be pruned so.
      TypeError: an option that there is not.
    """
    expect(model, "decoder")
    if model.tokenizer is not None:
        options = {"tokenizer": model.tokenizer.name, **options}
    asked = PruneOptions(target=target, calib=calib, **options)
    prune_folder(checkpoint_of(model), out, asked, model=model)
    own = (Path(out) / "tokenizer.json").is_file()
    return load(out, tokenizer=None if own or model.tokenizer is None else model.tokenizer.name)


def prune_folder(
    checkpoint: str | Path,
    out: str | Path,
    options: PruneOptions,
    *,
    model: Model | None = None,
    watch: Watch = SILENT,
) -> str:
    """Prunes what a folder holds into a folder that nobody else fills.

    Args:
      checkpoint: the folder.
      out: a new folder.
      options: how.
      model: what the folder holds, if it was read before.
      watch: what is told on the way.

    Returns:
      The Hugging Face family that was written.

    Raises:
      InputError: the folder is occupied, or the model cannot be pruned so; nothing is written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; name a new folder")
    with Claim(out, "pruning into"):  # before minutes of work, which one of two would do in vain
        return _prune(Job(str(checkpoint), options, watch), out, model)


def _asked(options: PruneOptions) -> tuple[Target | None, Plan | None]:
    """What to keep, or the plan that says it."""
    if (options.target is None) == (options.plan is None):
        raise InputError("give either a target (such as params=0.8) or a plan")
    if options.target is not None:
        return parse(options.target), None
    return None, plans.load(options.plan)


def _prune(job: Job[PruneOptions], out: Path, model: Model | None) -> str:
    began, options = time.monotonic(), job.options
    target, plan = _asked(options)
    params, cfg, where = open_job(
        job, model, kind="decoder", by="`pangu-jax prune`", dtype=options.dtype
    )
    family = _family(job.checkpoint)
    recipe = _recipe(options, family)
    check_all_finite(params, job.checkpoint)
    model_hash = plans.digest(params)
    if plan is not None and plan.model_hash not in ("", model_hash):
        plans.check_hash(plan, params)
    text = _text(job, where, cfg.vocab, needed=plan is None or recipe.repair != "none")
    if plan is not None and text is not None:
        _check_text(plan, text, options)
    sweep_cfg = stats.SweepConfig(batch=options.batch, moments=stats.moments_type(cfg))
    calibration = np.zeros((1, 2), np.int32) if text is None else text.calibration
    job.watch.say(_needed(params, cfg, calibration, sweep_cfg))
    before = _perplexity(params, cfg, text, job)
    with job.watch.progress() as show:
        result = compress(
            params,
            calibration,
            cfg=cfg,
            target=target,
            recipe=recipe,
            limits=_limits(options, family),
            sweep_cfg=sweep_cfg,
            plan=plan,
            progress=lambda what, done, total: show(f"{what}, layer", done, total),
        )
    result = dataclasses.replace(
        result, plan=dataclasses.replace(result.plan, model_hash=model_hash)
    )
    absorbed = {}
    if options.absorb is not None:
        new, new_cfg, absorbed = absorb(
            result.params, calibration, cfg=result.cfg, max_rel_err=options.absorb
        )
        result = dataclasses.replace(result, params=new, cfg=new_cfg)
    facts = {
        "options": options,
        "recipe": recipe,
        "family": family,
        "before": before,
        "after": _perplexity(result.params, result.cfg, text, job),
        "absorbed": absorbed,
        "text": text,
        "length": options.length,
    }
    return _write(job, out, result, cfg, calibration, facts, began)


def _write(job, out, result: Result, cfg, calibration, facts, began) -> str:
    """The folder, whole or not at all: checkpoint, loaded back and compared, plan, report."""
    working = job.watch.working("writing, reading back and comparing")
    with new_folder(out) as temporary, working:
        # A run folder of ours has a config.json too, but not Hugging Face's.
        own = (Path(job.checkpoint) / "model.json").is_file()
        where = job.options.tokenizer or job.checkpoint
        written, written_cfg, written_family = export.export(
            result.params,
            result.cfg,
            temporary,
            kind=job.options.export,
            family=facts["family"],
            source=None if own else job.checkpoint,
            companions=companions(where, job.checkpoint),
        )
        difference = _reload(temporary, result, calibration)
        plans.save(result.plan, temporary / "plan.json")
        prune_check.record(temporary, written, written_cfg, calibration)
        facts |= {
            "difference": difference,
            "written_family": written_family,
            "written_cfg": written_cfg,
            "seconds": time.monotonic() - began,
        }
        prune_report.write(temporary, result, cfg, facts)
    return written_family


def _reload(folder: Path, result: Result, calibration: np.ndarray) -> float:
    """Loads what was written and compares its logits with those of the model in memory."""
    params, cfg = hf.load(folder)
    tokens = jnp.asarray(prune_check.sample(calibration))
    found = prune_check.logits(params, tokens, cfg)
    want = prune_check.logits(result.params, tokens, result.cfg)
    difference = float(np.abs(found - want).max() / max(np.abs(want).max(), 1e-30))
    limit = 1e-4 if params["embed"]["table"].dtype == jnp.float32 else 3e-2
    if not difference <= limit:
        raise InputError(
            f"the checkpoint written differs from the pruned model: its logits by {difference:.2g} "
            "relative; nothing was kept"
        )
    return difference


def _family(checkpoint: str) -> str:
    folder = Path(checkpoint)
    own = (folder / "model.json").is_file() or not (folder / "config.json").is_file()
    return "llama" if own else hf.read_config(folder)[1]


def _recipe(options: PruneOptions, family: str) -> Recipe:
    known = (*export.AS_LLAMA, *export.WITHOUT_BIASES)
    if family not in known:
        raise InputError(
            f"checkpoints of the family {family} cannot be pruned; {', '.join(known)} can"
        )
    fitted: str = options.repair
    if family in export.WITHOUT_BIASES and fitted in repair.BIASED:
        if fitted != "ridge":
            raise InputError(
                f"repair {fitted} makes biases, which the family {family} cannot hold; "
                "take scale, ridge or none"
            )
        fitted = "ridge-no-bias"
    uneven = "global" if options.method == "flap" else "cosine"
    default = "equal" if options.export == "uniform" else uneven
    allocation = options.allocation or default
    if options.export == "uniform" and allocation != "equal":
        raise InputError(
            f"export uniform needs layers of equal widths, allocation {allocation} makes "
            "uneven ones; take export padded or per-layer"
        )
    return Recipe(
        method=options.method,
        repair=fitted,
        ridge=options.ridge,
        allocation=allocation,
        alpha=options.alpha,
        pruned_layers=options.pruned_layers,
        propagate=options.propagate,
        keep_lowest=options.keep_lowest,
        prunable_axes=options.prunable_axes,
        norm=options.norm,
        clap=options.clap,
        seed=options.seed or 0,
    )


def _limits(options: PruneOptions, family: str) -> Limits:
    return Limits(
        multiple=options.multiple,
        heads_divide=family in export.AS_LLAMA and options.export == "uniform",
        equal=options.export == "uniform",
        length=options.length,
    )


def _check_text(plan: Plan, text: Text, options: PruneOptions) -> None:
    if plan.text_hash not in ("", found := text_hash(text.calibration)):
        raise InputError(
            f"{options.plan} was made with other calibration windows (hash {plan.text_hash}, these "
            f"{found}); give the same text, windows, length and seed"
        )


def _text(job: Job[PruneOptions], where: str, vocab: int, *, needed: bool) -> Text | None:
    options = job.options
    if options.calib is None:
        if needed:
            raise InputError("give calib: a file or folder of text, or stdlib")
        return None
    tokenizer = load_tokenizer(options.tokenizer or where, checkpoint=job.checkpoint)
    with job.watch.working("reading the text"):
        tokens = tokenize(documents(options.calib, field=options.field), tokenizer)
    found = cut_windows(tokens, options.length, tokenizer.begin)
    check_vocabulary(found, tokenizer, vocab)
    if options.windows < 1:
        raise InputError(f"windows must be at least 1, got {options.windows}")
    if len(found) < options.windows:
        raise InputError(
            f"{options.calib} fills {len(found)} windows of {options.length} tokens, "
            f"{options.windows} are asked for"
        )
    if options.seed is not None:
        check_size("seed", options.seed, least=0)
        found = found[np.random.default_rng(options.seed).permutation(len(found))]
    rest = found[options.windows : options.windows + options.eval_windows]
    return Text(found[: options.windows], rest, options.calib, head(tokenizer, tokenizer.begin))


def _perplexity(params, cfg, text: Text | None, job: Job[PruneOptions]) -> float | None:
    if text is None or not len(text.evaluation):
        return None
    with job.watch.progress() as show:
        return measure_windows(
            params,
            text.evaluation,
            cfg=cfg,
            batch=job.options.batch,
            progress=lambda done, total: show("measuring, windows", done, total),
        ).perplexity


def _needed(params, cfg, windows, sweep_cfg) -> str:
    """The memory that statistics take, in words."""
    dtype = params["embed"]["table"].dtype
    needed = stats.memory(cfg, windows, sweep_cfg, dtype) if cfg.layers[0].mlp else 0
    return (
        f"{windows.size:,} calibration tokens; statistics take up to {needed / 2**20:,.0f} MiB "
        f"beside the parameters' {nbytes(params) / 2**20:,.0f} MiB"
    )
