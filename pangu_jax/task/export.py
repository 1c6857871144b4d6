"""Exports a model: StableHLO for CPU, GPU and TPU, or ONNX, or ONNX checked for Ascend."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax

from pangu_jax.checkpoint.forecaster import DESCRIPTION
from pangu_jax.core.config import load_config
from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import encode_for_encoder
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from pangu_jax.data.tokenizer_save import tokenizer_files
from pangu_jax.eval.text_encoder import configured
from pangu_jax.export import decoder, encoder, forecaster, parity, stablehlo
from pangu_jax.export.artifact import Artifact, new_folder, save
from pangu_jax.export.ascend import atc
from pangu_jax.export.ascend.profile import PROFILES, Violation, report, violations
from pangu_jax.export.implementations import export_forms, implementations
from pangu_jax.export.onnx import write as onnx_write
from pangu_jax.export.program import Bundle
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.thinker import ThinkerConfig, written_out
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent.exported import asking
from pangu_jax.reasoning.latent.train import RUN, Trained, reached
from pangu_jax.task.job import Job, open_job
from pangu_jax.task.model import Model, as_forecaster, checkpoint_of, expect, load
from pangu_jax.task.options import ExportOptions
from pangu_jax.task.watch import SILENT, Watch

KINDS = ("decoder", "encoder", "thinker")  # of what a checkpoint holds
PROMPTS = ("Once upon a time, there was", "The answer to the question is")
SCRIPT = "compile_ascend.sh"
PROFILE = 128  # tokens that a prompt or text may have if nothing says otherwise


def export(
    model: Model, out: str | Path, *, target: Literal["stablehlo", "onnx", "ascend"], **options: Any
) -> Artifact:
    """Compiles a model into a folder that runs without it, as `pangu-jax export` does.

        >>> pj.export(m, "artifact", target="onnx", profiles="128,512").programs

    What is written is compared with jax first. For Ascend the folder holds the script that runs
    atc; only the command runs it.

    Args:
      model: a language model, an encoder, a forecaster, or what a run of `pangu-jax latent train`
        holds.
      out: the folder to write; an artifact that is there is replaced.
      target: stablehlo runs with jax alone; onnx has opset 17; ascend is onnx and what atc needs.
      **options: the others of `task.options.ExportOptions`, such as `profiles`, `cache` and
        `dtype`.

    Raises:
      InputError: the model cannot be exported so, or what was made differs from jax.
      TypeError: an option that there is not.
    """
    expect(model, *KINDS, "forecaster")
    path = model.path if model.kind == "forecaster" else checkpoint_of(model)
    if model.tokenizer is not None:
        options = {"tokenizer": model.tokenizer.name, **options}
    return export_folder(path, out, ExportOptions(target=target, **options), model=model)[0]


def export_folder(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions,
    *,
    model: Model | None = None,
    watch: Watch = SILENT,
) -> tuple[Artifact, bool]:
    """Writes the artifact of what a folder holds.

    Args:
      checkpoint: the folder.
      out: the folder to write; an artifact that is there is replaced.
      options: how.
      model: what the folder holds, if it was read before.
      watch: is told the comparison with jax, and for Ascend the operators that the target lacks.

    Returns:
      The artifact, and whether it was compared: this machine may be none of its platforms.

    Raises:
      InputError: the model cannot be exported so, or what was made differs from jax; nothing is
        written then.
    """
    _check(options)
    job, onnx = Job(str(checkpoint), options, watch), options.target != "stablehlo"
    if model is None and (Path(checkpoint) / DESCRIPTION).is_file():
        model = load(checkpoint)
    made = _forecaster if model is not None and model.kind == "forecaster" else _checkpoint
    bundle, tokenizer = made(job, model)
    rounded = options.precision == "default" and options.dtype == "float32" and not onnx
    tolerance = options.tolerance or parity.TOLERANCES["default" if rounded else options.dtype]
    with new_folder(out) as folder:
        with watch.working("exporting and comparing with jax"):
            artifact, rows, offending = _export(options, bundle, folder, tolerance)
        watch.say(parity.table(rows))
        parity.require(rows, tolerance)
        _keep_tokenizer(tokenizer, folder)
        if options.target == "ascend":
            _prepare_ascend(options, artifact, folder, offending, watch)
        save(artifact, folder)
    return artifact, bool(rows)


def platforms(options: ExportOptions) -> tuple[str, ...]:
    """The platforms that a StableHLO artifact is to run on."""
    return tuple(p for p in options.platforms.split(",") if p)


def atc_commands(options: ExportOptions, artifact: Artifact) -> list[list[str]]:
    """What makes Ascend's programs of an artifact's, a command each."""
    assert options.soc is not None
    return [
        atc.atc_command(p, options.soc, precision_mode=options.precision_mode)
        for p in artifact.programs
    ]


def _batch_and_how(options: ExportOptions) -> tuple[Any, How]:
    """The batch, a number or open, the implementation of each operator, and the activations."""
    onnx = options.target != "stablehlo"
    batch = options.batch or (1 if onnx else stablehlo.symbolic_batch())
    static = options.batch is not None
    impl = export_forms() if onnx else implementations(platforms(options), static=static)
    if options.experts:
        impl["expert_mlp"] = options.experts
    return batch, How(impl=impl, dtype=options.dtype)


def _checkpoint(job: Job[ExportOptions], model: Model | None) -> tuple[Bundle, Tokenizer | None]:
    """The programs of a decoder, an encoder or a thinker, and its tokenizer or None."""
    options = job.options
    params, cfg, found = _opened(job, model)
    stored = {x.dtype.name for x in jax.tree.leaves(params)}
    params = jax.tree.map(lambda x: x.astype(options.dtype), params)
    tokenizer = _tokenizer(options.tokenizer or found, job.checkpoint)
    made = _encoder if isinstance(cfg, EncoderConfig) else _decoder
    bundle = made(job, params, cfg, tokenizer, *_batch_and_how(options))
    notes = []
    if options.dtype == "float32" and stored - {"float32"}:
        notes.append(f"the checkpoint holds {', '.join(sorted(stored))}; exported as float32")
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    notes.append(f"parameters take {total / 1e6:,.1f} MB")
    return replace(bundle, notes=(*notes, *bundle.notes)), tokenizer


def _opened(job: Job[ExportOptions], model: Model | None) -> tuple[Any, Any, str]:
    """Parameters, configuration, and where the tokenizer is; a thinker as a decoder.

    Raises:
      InputError: no such model, or a thinker that is not to think or whose folder says not how.
    """
    params, cfg, found = open_job(job, model, kind=KINDS, by="`pangu-jax export`")
    if isinstance(cfg, ThinkerConfig):
        if not _thinks(job):
            raise InputError(
                f"{job.checkpoint} holds a thinker, which is exported with its thoughts, from a "
                f"folder whose {RUN} says how it thinks"
            )
        params, cfg = written_out(params, cfg)
    return params, cfg, found


def _thinks(job: Job[ExportOptions]) -> bool:
    """Whether the programs think before they answer, as a run of a latent method says how."""
    return job.options.thoughts and (Path(job.checkpoint) / RUN).is_file()


def _decoder(
    job: Job[ExportOptions],
    params: Any,
    cfg: Any,
    tokenizer: Tokenizer | None,
    batch: Any,
    how: How,
) -> Bundle:
    asks, options = None, job.options
    if _thinks(job):
        if tokenizer is None:
            raise InputError(f"{job.checkpoint} has no tokenizer to ask questions with")
        reached(job.checkpoint, load_config(Trained, Path(job.checkpoint) / RUN))
        asks = asking(job.checkpoint, tokenizer)
        check_vocabulary([asks.facts["mark"], *asks.facts["suffix"]], tokenizer, cfg.vocab)
    longest = 0 if asks is None else asks.longest
    profiles = _profiles(options, min(longest, cfg.max_length))
    bundle = decoder.bundle(
        params,
        cfg,
        profiles=profiles,
        slots=options.cache,
        batch=batch,
        how=how,
        prompts=[] if tokenizer is None else _prompts(tokenizer, cfg.vocab),
        thinking=None if asks is None else asks.thinking,
        gap=0 if asks is None else asks.gap,
    )
    facts = {**bundle.facts, **_ids(tokenizer, cfg.vocab)}
    if asks is None:
        return replace(bundle, facts=facts)
    notes = [asks.note]
    if longest > max(profiles):
        notes.append(
            f"the run's questions have up to {longest} tokens, the longest profile {max(profiles)}"
        )
    return replace(bundle, facts={**facts, **asks.facts}, notes=tuple(notes))


def _encoder(
    job: Job[ExportOptions],
    params: Any,
    cfg: Any,
    tokenizer: Tokenizer | None,
    batch: Any,
    how: How,
) -> Bundle:
    """Vectors, or scores of a head where the folder says no pooling and no option does."""
    profiles, note, pooling = _profiles(job.options), (), job.options.pooling
    if pooling or not cfg.classes:
        cfg = configured(cfg, job.checkpoint, pooling=pooling)
        said = "the option pooling" if pooling else job.checkpoint
        note = (f"pooling is {cfg.pooling}{', scaled to length 1' * cfg.normalize}, by {said}",)
    bundle = encoder.bundle(
        params,
        cfg,
        profiles=profiles,
        batch=batch,
        how=how,
        texts=[] if tokenizer is None else _texts(tokenizer, cfg.vocab, min(profiles)),
    )
    return replace(bundle, notes=note)


def _forecaster(job: Job[ExportOptions], model: Model) -> tuple[Bundle, None]:
    """A forecaster's one program; prompt lengths and caches mean nothing to it."""
    if job.options.dtype != "float32":
        raise InputError("a forecaster is exported in float32")
    found = as_forecaster(model)
    batch, how = _batch_and_how(job.options)
    return forecaster.bundle(found, batch=batch, how=forecaster.forms(found, how)), None


def _check(options: ExportOptions) -> None:
    if options.target != "stablehlo" and options.dtype != "float32":
        raise InputError("ONNX programs compute in float32: atc chooses float16 itself")
    if options.target == "ascend":
        if options.soc is None:
            raise InputError("target ascend needs soc, such as Ascend310P3 (see `npu-smi info`)")
        atc.check_soc(options.soc)
        if options.precision_mode and options.precision_mode not in atc.PRECISION_MODES:
            known = ", ".join(atc.PRECISION_MODES)
            raise InputError(
                f"there is no precision mode {options.precision_mode!r}; known: {known}"
            )
    if options.batch is not None and options.batch < 1:
        raise InputError(f"batch must be at least 1, got {options.batch}")
    stablehlo.check_platforms(platforms(options))
    _profiles(options)


def _profiles(options: ExportOptions, longest: int = 0) -> tuple[int, ...]:
    """The lengths that were asked for; else one, which takes `longest` tokens, too."""
    text = options.profiles
    if text is None:
        return (max(PROFILE, longest),)
    try:
        return tuple(int(part) for part in text.split(","))
    except (AttributeError, ValueError):  # from Python it may be a number
        raise InputError(
            f"profiles is {text!r}; it must be a text of lengths such as 128,512"
        ) from None


def _tokenizer(name: str, checkpoint: str) -> Tokenizer | None:
    """The tokenizer, if there is one."""
    try:
        return load_tokenizer(name, checkpoint=checkpoint)
    except InputError:
        return None


def _prompts(tokenizer: Tokenizer, vocab: int) -> list[list[int]]:
    """Ids of real text, if they fit."""
    ids = [[*tokenizer.begin, *tokenizer.encode(text)] for text in PROMPTS]
    return [row for row in ids if max(row, default=vocab) < vocab]


def _texts(tokenizer: Tokenizer, vocab: int, length: int) -> list[list[int]]:
    """Ids of real text as an encoder reads it, if they fit."""
    try:
        found = [item.ids for item in encode_for_encoder(tokenizer, PROMPTS, length)]
    except InputError:  # such as a length that the special tokens leave no room in
        return []
    return [ids for ids in found if max(ids) < vocab]


def _ids(tokenizer: Tokenizer | None, vocab: int) -> dict[str, list[int]]:
    """What a caller of the programs needs to know of the tokenizer: ids by their use."""
    if tokenizer is None:
        return {}
    found = {
        "begin": tokenizer.begin,  # before a prompt
        "empty": tokenizer.begin or (tokenizer.boundary,),  # in place of an empty one
        "stop": tokenizer.eos_ids,  # after a text
    }
    return {name: [i for i in ids if i < vocab] for name, ids in found.items()}


def _export(
    options: ExportOptions, bundle: Bundle, folder: Path, tolerance: float
) -> tuple[Artifact, list[parity.Row], list[Violation]]:
    if options.target == "stablehlo":
        artifact, rows = stablehlo.export(
            bundle,
            folder,
            platforms=platforms(options),
            inside=options.weights == "inside",
            precision=options.precision,
            tolerance=tolerance,
        )
        return artifact, rows, []
    artifact, rows, lowered = onnx_write.export(bundle, folder, tolerance=tolerance)
    used = PROFILES[options.operators]
    bad = [o for n, made in lowered.items() for o in violations(n, made.graph.nodes, used)]
    return artifact, rows, bad


def _keep_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    content = None if tokenizer is None else tokenizer_files(tokenizer).get("tokenizer.json")
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)


def _prepare_ascend(
    options: ExportOptions,
    artifact: Artifact,
    folder: Path,
    found: list[Violation],
    watch: Watch,
) -> None:
    used = PROFILES[options.operators]
    text = report({p.name: p.operators for p in artifact.programs}, found, used)
    watch.say(text)
    (folder / "operators.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "operators.json").write_text(
        json.dumps([o.__dict__ for o in found], indent=1) + "\n", encoding="utf-8"
    )
    if found:
        raise InputError(
            f"{found[0].program} uses {found[0].operator}, from {found[0].origin}, which "
            f"{used.name} does not have; nothing was written"
        )
    atc.write_script(folder / SCRIPT, atc_commands(options, artifact))
