"""Exports a checkpoint: StableHLO for CPU, GPU and TPU, or ONNX, or ONNX checked for Ascend."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from pangu_jax.checkpoint.forecaster import DESCRIPTION
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.latent_eval import reached
from pangu_jax.cli.progress import working
from pangu_jax.core.config import check_choices, load_config
from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import encode_for_encoder
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.data.tokenizer_save import tokenizer_files
from pangu_jax.eval.text_encoder import configured
from pangu_jax.export import decoder, encoder, forecaster, parity, stablehlo
from pangu_jax.export.artifact import SAMPLES, Artifact, new_folder, save
from pangu_jax.export.ascend import atc
from pangu_jax.export.ascend.profile import PROFILES, Violation, report, violations
from pangu_jax.export.implementations import export_forms, implementations
from pangu_jax.export.onnx import write as onnx_write
from pangu_jax.export.program import Bundle
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import Pooling
from pangu_jax.models.thinker import written_out
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent.exported import asking
from pangu_jax.reasoning.latent.train import RUN, Trained
from pangu_jax.task.model import Model, as_forecaster, checkpoint_of, expect, load

PROMPTS = ("Once upon a time, there was", "The answer to the question is")
SCRIPT = "compile_ascend.sh"


@dataclass(frozen=True)
class Options:
    """What to export, to which target, and how to check it."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a folder in the Hugging Face layout, or a trained forecaster's folder."""
    target: Literal["stablehlo", "onnx", "ascend"]
    """stablehlo: runs with jax alone. onnx: opset 17. ascend: onnx, and what atc needs."""
    out: str
    """The folder to write; an existing artifact is replaced."""
    profiles: str = "128"
    """Prompt or text lengths, such as 128,512,2048: one static program for each."""
    cache: int | None = None
    """Slots of the key-value cache; None is twice the longest profile, if the model allows it."""
    batch: int | None = None
    """Rows of a batch; None is 1 for onnx and ascend, and open for stablehlo."""
    platforms: str = "cpu"
    """For stablehlo: the platforms, of cpu,cuda,tpu, that the artifact runs on."""
    weights: Literal["beside", "inside"] = "beside"
    """For stablehlo: weights in a file shared by the programs, or embedded in each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; ONNX is float32."""
    precision: Literal["highest", "default"] = "highest"
    """For stablehlo: precision of float32 matmuls on GPU and TPU; default is faster, less exact."""
    experts: Literal["dense", "gather"] | None = None
    """How routed experts are computed; None is dense-in-group. gather suits batch 1 on a CPU."""
    soc: str | None = None
    """For ascend: the chip, such as Ascend310P3 (see `npu-smi info`)."""
    operators: Literal["cann-8.0", "cann-5.0.4"] = "cann-8.0"
    """For ascend: the operator list to comply with."""
    precision_mode: str | None = None
    """For ascend: atc's --precision_mode."""
    tolerance: float | None = None
    """Maximum relative error against jax; None is 1e-4 in float32 (1e-2 with --precision default),
    1e-1 in bfloat16."""
    pooling: Pooling | None = None
    """For an encoder: which hidden states make a vector; None is what the folder says."""
    thoughts: bool = True
    """Of a run of `latent train`: whether the programs think as its model learned to, as many
    thoughts as its last stage; without it the decoder alone is exported."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json, for the real prompts; None takes the checkpoint's own."""

    def __post_init__(self):
        check_choices(self)


def main(options: Options) -> None:
    """Exports, compares with jax, prints the table; keeps nothing above the tolerance."""
    artifact, compared = _make(options, print)
    for note in artifact.notes:
        print(f"note: {note}")
    if not compared:
        print(
            f"not compared: this machine is none of {', '.join(_platforms(options))}; on one that "
            f"is, run pangu-jax run {options.out} --check"
        )
    if options.target == "ascend":
        _compile(options, artifact)
    count = len(artifact.programs)
    check = " --check" if SAMPLES in artifact.files else ""
    print(f"{options.out} holds {count} programs; try: pangu-jax run {options.out}{check}")


def export(
    model: Model, out: str | Path, *, target: Literal["stablehlo", "onnx", "ascend"], **options: Any
) -> Artifact:
    """Compiles a model into a folder that runs without it, as `pangu-jax export` does.

        >>> pj.export(m, "artifact", target="onnx", profiles="128,512").programs

    What is written is compared with jax first. For Ascend the folder holds the script that runs
    atc; only the command runs it.

    Args:
      model: a language model, an encoder or a forecaster.
      out: the folder to write; an artifact that is there is replaced.
      target: stablehlo runs with jax alone; onnx has opset 17; ascend is onnx and what atc needs.
      **options: the other options of `Options`, such as `profiles`, `cache` and `dtype`.

    Raises:
      InputError: the model cannot be exported so, or what was made differs from jax.
      TypeError: an option that there is not.
    """
    expect(model, "decoder", "encoder", "forecaster")
    path = model.path if model.kind == "forecaster" else checkpoint_of(model)
    if model.tokenizer is not None:
        options = {"tokenizer": model.tokenizer.name, **options}
    return _make(Options(path, target, str(out), **options), lambda _: None, model)[0]


def _make(
    options: Options, say: Callable[[str], None], model: Model | None = None
) -> tuple[Artifact, bool]:
    """Writes the artifact of a model, read if there is none; and whether it was compared."""
    _check(options)
    platforms, onnx = _platforms(options), options.target != "stablehlo"
    if model is None and (Path(options.checkpoint) / DESCRIPTION).is_file():
        model = load(options.checkpoint)
    made = _forecaster if model is not None and model.kind == "forecaster" else _checkpoint
    bundle, tokenizer = made(options, platforms, model)
    rounded = options.precision == "default" and options.dtype == "float32" and not onnx
    tolerance = options.tolerance or parity.TOLERANCES["default" if rounded else options.dtype]
    with new_folder(options.out) as folder:
        with working("exporting and comparing with jax"):
            artifact, rows, offending = _export(options, bundle, folder, platforms, tolerance)
        say(parity.table(rows))
        parity.require(rows, tolerance)
        _keep_tokenizer(tokenizer, folder)
        if options.target == "ascend":
            _prepare_ascend(options, artifact, folder, offending, say)
        save(artifact, folder)
    return artifact, bool(rows)


def _platforms(options: Options) -> tuple[str, ...]:
    return tuple(p for p in options.platforms.split(",") if p)


def _batch_and_how(options: Options, platforms: tuple[str, ...]) -> tuple[Any, How]:
    """The batch, a number or open, the implementation of each operator, and the activations."""
    onnx = options.target != "stablehlo"
    batch = options.batch or (1 if onnx else stablehlo.symbolic_batch())
    static = options.batch is not None
    impl = export_forms() if onnx else implementations(platforms, static=static)
    if options.experts:
        impl["expert_mlp"] = options.experts
    return batch, How(impl=impl, dtype=options.dtype)


def _checkpoint(
    options: Options, platforms: tuple[str, ...], model: Model | None
) -> tuple[Bundle, Tokenizer | None]:
    """The programs of a decoder or an encoder, and its tokenizer or None."""
    if model is None:
        with working(f"reading {options.checkpoint}"):
            thinks = options.thoughts and (Path(options.checkpoint) / RUN).is_file()
            kinds = ("decoder", "encoder", *(("thinker",) if thinks else ()))
            params, cfg, found = open_checkpoint(
                options.checkpoint, kind=kinds, by="`pangu-jax export`"
            )
            if thinks:
                params, cfg = written_out(params, cfg)
    else:
        params, cfg, found = model.params, model.cfg, options.checkpoint
    stored = {x.dtype.name for x in jax.tree.leaves(params)}
    params = jax.tree.map(lambda x: x.astype(options.dtype), params)
    tokenizer = _tokenizer(options.tokenizer or found, options.checkpoint)
    made = _encoder if isinstance(cfg, EncoderConfig) else _decoder
    bundle = made(options, params, cfg, tokenizer, *_batch_and_how(options, platforms))
    notes = []
    if options.dtype == "float32" and stored - {"float32"}:
        notes.append(f"the checkpoint holds {', '.join(sorted(stored))}; exported as float32")
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    notes.append(f"parameters take {total / 1e6:,.1f} MB")
    return replace(bundle, notes=(*notes, *bundle.notes)), tokenizer


def _decoder(
    options: Options, params: Any, cfg: Any, tokenizer: Tokenizer | None, batch: Any, how: How
) -> Bundle:
    asks = None
    if options.thoughts and (Path(options.checkpoint) / RUN).is_file():
        if tokenizer is None:
            raise InputError(f"{options.checkpoint} has no tokenizer to ask questions with")
        reached(options.checkpoint, load_config(Trained, Path(options.checkpoint) / RUN))
        asks = asking(options.checkpoint, tokenizer)
    bundle = decoder.bundle(
        params,
        cfg,
        profiles=_numbers(options.profiles),
        slots=options.cache,
        batch=batch,
        how=how,
        prompts=[] if tokenizer is None else _prompts(tokenizer, cfg.vocab),
        thinking=None if asks is None else asks.thinking,
    )
    facts = {**bundle.facts, **_ids(tokenizer, cfg.vocab)}
    if asks is None:
        return replace(bundle, facts=facts)
    return replace(bundle, facts={**facts, **asks.facts}, notes=(asks.note,))


def _encoder(
    options: Options, params: Any, cfg: Any, tokenizer: Tokenizer | None, batch: Any, how: How
) -> Bundle:
    """Vectors, or scores of a head where the folder says no pooling and no option does."""
    profiles, note = _numbers(options.profiles), ()
    if options.pooling or not cfg.classes:
        cfg = configured(cfg, options.checkpoint, pooling=options.pooling)
        said = "--pooling" if options.pooling else options.checkpoint
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


def _forecaster(options: Options, platforms: tuple[str, ...], model: Model) -> tuple[Bundle, None]:
    """A forecaster's one program; prompt lengths and caches mean nothing to it."""
    if options.dtype != "float32":
        raise InputError("a forecaster is exported in float32")
    found = as_forecaster(model)
    batch, how = _batch_and_how(options, platforms)
    return forecaster.bundle(found, batch=batch, how=forecaster.forms(found, how)), None


def _check(options: Options) -> None:
    if options.target != "stablehlo" and options.dtype != "float32":
        raise InputError("ONNX programs compute in float32: atc chooses float16 itself")
    if options.target == "ascend":
        if options.soc is None:
            raise InputError(
                "--target ascend needs --soc, such as Ascend310P3 (see `npu-smi info`)"
            )
        atc.check_soc(options.soc)
        if options.precision_mode and options.precision_mode not in atc.PRECISION_MODES:
            known = ", ".join(atc.PRECISION_MODES)
            raise InputError(
                f"there is no precision mode {options.precision_mode!r}; known: {known}"
            )
    if options.batch is not None and options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")
    stablehlo.check_platforms(_platforms(options))
    _numbers(options.profiles)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--profiles is {text!r}; it must be lengths such as 128,512") from None


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
    options: Options, bundle: Bundle, folder: Path, platforms: tuple[str, ...], tolerance: float
) -> tuple[Artifact, list[parity.Row], list[Violation]]:
    if options.target == "stablehlo":
        artifact, rows = stablehlo.export(
            bundle,
            folder,
            platforms=platforms,
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


def _commands(options: Options, artifact: Artifact) -> list[list[str]]:
    assert options.soc is not None
    return [
        atc.atc_command(p, options.soc, precision_mode=options.precision_mode)
        for p in artifact.programs
    ]


def _prepare_ascend(
    options: Options,
    artifact: Artifact,
    folder: Path,
    found: list[Violation],
    say: Callable[[str], None],
) -> None:
    used = PROFILES[options.operators]
    text = report({p.name: p.operators for p in artifact.programs}, found, used)
    say(text)
    (folder / "operators.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "operators.json").write_text(
        json.dumps([o.__dict__ for o in found], indent=1) + "\n", encoding="utf-8"
    )
    if found:
        raise InputError(
            f"{found[0].program} uses {found[0].operator}, from {found[0].origin}, which "
            f"{used.name} does not have; nothing was written"
        )
    atc.write_script(folder / SCRIPT, _commands(options, artifact))


def _compile(options: Options, artifact: Artifact) -> None:
    for words in _commands(options, artifact):
        print(" ".join(words))
    outcome = atc.run_atc(Path(options.out), _commands(options, artifact), script_name=SCRIPT)
    print(outcome.message)
    if any(outcome.statuses.values()):
        print("the ONNX programs are good; the failure is atc's", file=sys.stderr)
        raise SystemExit(1)
