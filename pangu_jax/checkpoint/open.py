"""Opens the formats that hold a model: our own run folder, a Hugging Face folder, GGUF."""

import os
from pathlib import Path
from typing import Any, Literal

from pangu_jax.checkpoint import forecaster, gguf_file, hf, store
from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import SETTINGS
from pangu_jax.models import registry
from pangu_jax.sharding.layout import Layout

LATENT = "latent.json"  # reasoning.latent.train.RUN, which this room cannot import
# Commands that train with another checkpoint's tokenizer and write the model beside their own
# checkpoints, by a setting that no other command's run has.
TRAINERS = {"student": "distill", "reward": "rl"}
TRAINED = "model"  # the folder in OUT that they write


def open_checkpoint(
    path: str | Path,
    *,
    kind: str | tuple[str, ...] | None = None,
    by: str = "this call",
    dtype: Any = None,
    layout: Layout | None = None,
) -> tuple[Any, Any, str]:
    """Returns parameters, configuration, and the tokenizer's location.

    Args:
      path: a run folder (model.json, checkpoints/) or a Hugging Face folder (config.json,
        safetensors).
      kind: the only kind of model to take, or kinds, of `models.registry.KINDS`; None takes any.
      by: the caller that takes only these, as the error names it.
      dtype: type of the parameters; None keeps what is stored.
      layout: placement of the arrays; None is the default device.

    Returns:
      The parameters, the configuration, and the argument of `data.tokenizer.load_tokenizer`: the
      folder, or "bytes" for a run of ours without a tokenizer.json. A Hugging Face folder without
      one is returned all the same, and so is a run that says it had one, so that loading its
      tokenizer is an error and not bytes.

    Raises:
      InputError: the folder is neither, cannot be read, or holds another kind of model, or a run of
        `pangu-jax rl` or `distill`, whose model is in a folder of its own.
    """
    path = Path(path)
    place = checkpoint_format(path)
    if place == "gguf":
        raise InputError(
            f"{path} is a GGUF file; `pangu-jax convert {path} FOLDER` makes it a checkpoint"
        )
    if place == "run":
        _check_is_model(path)
    if kind is not None:
        _expect((kind,) if isinstance(kind, str) else kind, by, path, place)
    if place == "forecaster":
        raise InputError(f"{path} holds a forecaster, which is for `pangu-jax forecast`")
    if place == "run":
        params, cfg = store.restore_params(path, dtype=dtype, layout=layout)
        own = (path / "tokenizer.json").is_file() or _had_tokenizer(path)
        return params, cfg, str(path) if own else "bytes"
    params, cfg = hf.load(path, dtype=dtype, layout=layout)
    return params, cfg, str(path)


def read_cfg(path: str | Path) -> Any:
    """The configuration of the model in a run or a Hugging Face folder; reads no tensors.

    Raises:
      InputError: the folder is neither, or cannot be read.
    """
    return _read_cfg(Path(path), checkpoint_format(path))


def checkpoint_format(path: str | Path) -> Literal["run", "hf", "gguf", "forecaster"]:
    """The format of a path: a run of ours, a Hugging Face folder, a GGUF file, or a forecaster.

    Raises:
      InputError: it is none of these.
    """
    if gguf_file.is_gguf(path):
        return "gguf"
    # A run has a config.json too. os.path, unlike Path, treats names that are too long as absent;
    # and a dangling link, as in a snapshot copied without its blobs, is for the reader to report.
    if os.path.lexists(Path(path) / store.MODEL):
        return "run"
    if os.path.lexists(Path(path) / hf.CONFIG):
        return "hf"
    if os.path.lexists(Path(path) / forecaster.DESCRIPTION):  # beside which the user's files may be
        return "forecaster"
    raise InputError(
        f"{path!s:.200} is no checkpoint: it has neither {store.MODEL} (a run of ours) nor "
        f"{hf.CONFIG} (a Hugging Face folder), and is no GGUF file"
    )


def left_out(path: str | Path) -> list[str]:
    """What a plain decoder leaves out of a run of `latent train`, in sentences; [] for others."""
    place = Path(path) / LATENT
    found = read_json(place) if place.is_file() else None
    phase = found.get("phase") if isinstance(found, dict) else None
    if not isinstance(phase, dict):
        return []
    kinds = {"slots": "thoughts or pauses", "chain_room": "positions that stay free"}
    return [
        f"{path} was trained to answer after {phase[name]} {kind}, which are left out here; "
        "`pangu-jax latent eval` and `export` have them"
        for name, kind in kinds.items()
        if phase.get(name)
    ]


def _check_is_model(run: Path) -> None:
    """Raises InputError for a run without the tokenizer of its model, which is in TRAINED."""
    found = _read_said(run, SETTINGS)
    command = next((name for setting, name in TRAINERS.items() if setting in found), None)
    if command is None:
        return
    what, model = f"run of `pangu-jax {command}`", run / TRAINED
    if model.is_dir():
        raise InputError(f"{run} holds a {what}, whose model is {model}; give that")
    raise InputError(
        f"{run} holds a {what} that has not ended; the same command goes on and writes {model}"
    )


def _had_tokenizer(run: Path) -> bool:
    """Whether a run says that it was trained with a tokenizer of a file; older ones may not say."""
    name = _read_said(run, LATENT, SETTINGS).get("tokenizer")
    return isinstance(name, str) and name != "bytes"


def _read_said(run: Path, *names: str) -> dict[str, Any]:
    """What the first of these files that a run has says of it."""
    said = next((run / name for name in names if (run / name).is_file()), None)
    found = None if said is None else read_json(said, finite=False)
    return found if isinstance(found, dict) else {}


def _expect(kinds: tuple[str, ...], by: str, path: Path, place: str) -> None:
    """Raises InputError for another kind of model, before its tensors are read."""
    found = place if place == "forecaster" else registry.kind_of(_read_cfg(path, place)).name
    if found not in kinds:
        raise InputError(f"{path} holds {_one(found)}; {by} takes {' or '.join(map(_one, kinds))}")


def _read_cfg(path: Path, place: str) -> Any:
    if place in ("run", "hf"):
        return store.load_model(path) if place == "run" else hf.read_config(path)[0]
    raise InputError(f"{path} is neither a run folder nor in the Hugging Face layout")


def _one(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
