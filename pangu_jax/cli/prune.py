"""Prunes a checkpoint: a smaller one that loads elsewhere, a plan to replay, a report.

    pangu-jax prune CHECKPOINT OUT --target params=0.8 --calib TEXT

`pangu-jax prune check OUT` re-loads OUT and verifies what was promised; see its --help.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli import prune_check, prune_report
from pangu_jax.cli.progress import progress, working
from pangu_jax.core.config import check_choices
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
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import Result, compress, text_hash
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.task.model import Model, checkpoint_of, expect, load


@dataclass(frozen=True)
class Options:
    """What to prune, to what size, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder or a folder in the Hugging Face layout; one that is called check is ./check."""
    out: Annotated[str, tyro.conf.Positional]
    """A new folder for the pruned checkpoint, plan.json and report.md."""
    target: str | None = None
    """What to keep: "params=0.8", "flops=0.7", or axes: "ffn=0.5,groups=0.75,layers=24"."""
    calib: str | None = None
    """Calibration text: a file or folder of .txt or .jsonl, either possibly .gz; "stdlib"."""
    method: Literal[
        "slimllm", "pangu-light", "flap", "wanda-sp", "minitron", "taylor", "magnitude", "random"
    ] = "slimllm"
    """How units are scored."""
    repair: Literal["ridge", "affine", "scale", "bias", "none"] = "ridge"
    """How pruned projections are refitted; ridge without biases where the family has none."""
    export: Literal["uniform", "padded", "per-layer"] = "uniform"
    """Layers of equal widths; zero-padded to equal widths; or each as it is."""
    allocation: Literal["equal", "cosine", "global"] | None = None
    """Shares of the layers; None is equal for uniform, and cosine (flap: global) otherwise."""
    windows: int = 32
    """Calibration windows."""
    length: int = 128
    """Tokens per window."""
    seed: int | None = None
    """Draws random windows of the text; None takes its first ones."""
    prunable_axes: Annotated[
        tuple[Literal["groups", "ffn", "hidden"], ...], tyro.conf.arg(aliases=["--free"])
    ] = ()
    """Axes that a params or flops target cuts; empty is the method's own."""
    ridge: float | None = Recipe.ridge
    """Strength of the ridge repair; None chooses it on held-out windows."""
    propagate: Literal["pruned", "dense"] = "pruned"
    """Whether scores and repairs see the preceding layers as already pruned."""
    norm: Literal["none", "l2", "dim", "calibrated"] = "l2"
    """How norm gains are re-initialized when hidden channels are pruned (SLNP)."""
    clap: bool = Recipe.clap
    """Whether removed layers pass their best KV groups to the preceding layer (CLAP)."""
    alpha: float = Recipe.alpha
    """Unevenness of the cosine allocation."""
    pruned_layers: int | None = Recipe.pruned_layers
    """How many layers the cosine allocation prunes; None is all."""
    keep_lowest: float = Recipe.keep_lowest
    """Share of the least important channels kept (0.01 in SlimLLM's released code)."""
    multiple: int | None = None
    """FFN and hidden widths are multiples of it, where the model's own are (128 suits Ascend); None
    is 16 for widths of at least 256, and 1 below."""
    absorb: float | None = None
    """Fold sandwich norms into the projections where the relative error is below this."""
    plan: str | None = None
    """Replay this plan.json instead of choosing; --calib then only serves the repair."""
    eval_windows: int = 40
    """Windows after the calibration ones on which perplexity is measured; 0 for none."""
    batch: int = stats.SweepConfig.batch
    """Windows computed at once."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    field: str = "text"
    """The key of the text in .jsonl lines."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of parameters and activations; None keeps the checkpoint's."""

    def __post_init__(self):
        check_choices(self)


@dataclass(frozen=True)
class Text:
    """Calibration and evaluation windows."""

    calibration: np.ndarray
    evaluation: np.ndarray
    name: str
    head: str
    """What each window begins with, as shown to the user."""


def main(options: Options) -> None:
    """Prunes, repairs, saves, reloads, compares, reports."""
    written = _claimed(options)
    out = Path(options.out)
    print((out / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip())
    hint = "" if (out / "tokenizer.json").is_file() else " --tokenizer bytes"
    print(f"\n{out} holds the pruned checkpoint as {written}; ", end="")
    print(f"try: pangu-jax generate {out}{hint}")


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
      **options: the other options of `Options`, such as `method` and `repair`.

    Raises:
      InputError: the model cannot be pruned so.
      TypeError: an option that there is not.
    """
    expect(model, "decoder")
    if model.tokenizer is not None:
        options = {"tokenizer": model.tokenizer.name, **options}
    checkpoint = checkpoint_of(model)
    _claimed(Options(checkpoint, str(out), target, calib, **options), model)
    own = (Path(out) / "tokenizer.json").is_file()
    return load(out, tokenizer=None if own or model.tokenizer is None else model.tokenizer.name)


def _claimed(options: Options, model: Model | None = None) -> str:
    """Prunes into a folder that nobody else fills; the family that was written."""
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; name a new folder")
    with Claim(out, "pruning into"):  # before minutes of work, which one of two would do in vain
        return _prune(options, out, model)


def _opened(options: Options, model: Model | None) -> tuple[Any, Any, str]:
    """As `open_checkpoint`, of a model that was read before, or not yet."""
    if model is None:
        with working(f"reading {options.checkpoint}"):
            return open_checkpoint(
                options.checkpoint, kind="decoder", by="`pangu-jax prune`", dtype=options.dtype
            )
    params, dtype = model.params, options.dtype
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    return params, model.cfg, options.checkpoint


def _prune(options: Options, out: Path, model: Model | None) -> str:
    began = time.monotonic()
    if (options.target is None) == (options.plan is None):
        raise InputError("give either --target (such as params=0.8) or --plan")
    target = None if options.target is None else parse(options.target)
    plan = None if options.plan is None else plans.load(options.plan)
    params, cfg, where = _opened(options, model)
    family = _family(options.checkpoint)
    recipe = _recipe(options, family)
    check_all_finite(params, options.checkpoint)
    model_hash = plans.digest(params)
    if plan is not None and plan.model_hash not in ("", model_hash):
        plans.check_hash(plan, params)
    text = _text(options, where, cfg.vocab, needed=plan is None or recipe.repair != "none")
    if (
        plan is not None
        and text is not None
        and plan.text_hash not in ("", text_hash(text.calibration))
    ):
        raise InputError(
            f"{options.plan} was made with other calibration windows (hash {plan.text_hash}, these "
            f"{text_hash(text.calibration)}); give the same text, --windows, --length and --seed"
        )
    sweep_cfg = stats.SweepConfig(batch=options.batch, moments=stats.moments_type(cfg))
    calibration = np.zeros((1, 2), np.int32) if text is None else text.calibration
    _announce(params, cfg, calibration, sweep_cfg)
    before = _perplexity(params, cfg, text, options)
    with progress() as show:
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
        "after": _perplexity(result.params, result.cfg, text, options),
        "absorbed": absorbed,
        "text": text,
        "length": options.length,
    }
    return _write(out, options, result, cfg, family, calibration, facts, began)


def _write(out, options, result: Result, cfg, family, calibration, facts, began) -> str:
    """The folder, whole or not at all: checkpoint, loaded back and compared, plan, report."""
    with new_folder(out) as temporary, working("writing, reading back and comparing"):
        # A run folder of ours has a config.json too, but not Hugging Face's.
        own = (Path(options.checkpoint) / "model.json").is_file()
        where = options.tokenizer or options.checkpoint
        written, written_cfg, written_family = export.export(
            result.params,
            result.cfg,
            temporary,
            kind=options.export,
            family=family,
            source=None if own else options.checkpoint,
            companions=companions(where, options.checkpoint),
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


def _recipe(options: Options, family: str) -> Recipe:
    known = (*export.AS_LLAMA, *export.WITHOUT_BIASES)
    if family not in known:
        raise InputError(
            f"checkpoints of the family {family} cannot be pruned; {', '.join(known)} can"
        )
    fitted: str = options.repair
    if family in export.WITHOUT_BIASES and fitted in repair.BIASED:
        if fitted != "ridge":
            raise InputError(
                f"--repair {fitted} makes biases, which the family {family} cannot hold; "
                "take scale, ridge or none"
            )
        fitted = "ridge-no-bias"
    uneven = "global" if options.method == "flap" else "cosine"
    default = "equal" if options.export == "uniform" else uneven
    allocation = options.allocation or default
    if options.export == "uniform" and allocation != "equal":
        raise InputError(
            f"--export uniform needs layers of equal widths, --allocation {allocation} makes "
            "uneven ones; take --export padded or per-layer"
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


def _limits(options: Options, family: str) -> Limits:
    return Limits(
        multiple=options.multiple,
        heads_divide=family in export.AS_LLAMA and options.export == "uniform",
        equal=options.export == "uniform",
        length=options.length,
    )


def _text(options: Options, where: str, vocab: int, *, needed: bool) -> Text | None:
    if options.calib is None:
        if needed:
            raise InputError("give --calib: a file or folder of text, or stdlib")
        return None
    tokenizer = load_tokenizer(options.tokenizer or where, checkpoint=options.checkpoint)
    with working("reading the text"):
        tokens = tokenize(documents(options.calib, field=options.field), tokenizer)
    found = cut_windows(tokens, options.length, tokenizer.begin)
    check_vocabulary(found, tokenizer, vocab)
    if options.windows < 1:
        raise InputError(f"--windows must be at least 1, got {options.windows}")
    if len(found) < options.windows:
        raise InputError(
            f"{options.calib} fills {len(found)} windows of {options.length} tokens, "
            f"--windows asks for {options.windows}"
        )
    if options.seed is not None:
        found = found[np.random.default_rng(options.seed).permutation(len(found))]
    rest = found[options.windows : options.windows + options.eval_windows]
    return Text(found[: options.windows], rest, options.calib, head(tokenizer, tokenizer.begin))


def _perplexity(params, cfg, text: Text | None, options: Options) -> float | None:
    if text is None or not len(text.evaluation):
        return None
    with progress() as show:
        return measure_windows(
            params,
            text.evaluation,
            cfg=cfg,
            batch=options.batch,
            progress=lambda done, total: show("measuring, windows", done, total),
        ).perplexity


def _announce(params, cfg, windows, sweep_cfg) -> None:
    dtype = params["embed"]["table"].dtype
    needed = stats.memory(cfg, windows, sweep_cfg, dtype) if cfg.layers[0].mlp else 0
    print(
        f"{windows.size:,} calibration tokens; statistics take up to {needed / 2**20:,.0f} MiB "
        f"beside the parameters' {nbytes(params) / 2**20:,.0f} MiB",
        file=sys.stderr,
    )
