"""A model with its configuration and tokenizer, loaded from wherever it is stored."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pangu_jax.checkpoint import forecaster, hf
from pangu_jax.checkpoint.forecaster import Forecaster
from pangu_jax.checkpoint.gguf_file import Gguf, open_gguf
from pangu_jax.checkpoint.open import checkpoint_format, open_checkpoint
from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.data import tokenizer_gguf
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.models import registry

Dtype = Literal["float32", "bfloat16"]
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model, as data: what the functions of `pangu_jax` take.

    Attributes:
      kind: "decoder" (a language model), "encoder" (text embeddings), or "forecaster"; or another
        of `models.registry.KINDS`.
      params: a nested tree of arrays.
      cfg: the frozen dataclass that describes it completely.
      tokenizer: its tokenizer; None where it has none.
      path: where it was read from; "" if nowhere.
      half_width: for a forecaster, float64 [H, V]: the half widths of its intervals.
    """

    kind: str
    params: Any
    cfg: Any
    tokenizer: Tokenizer | None = None
    path: str = ""
    half_width: np.ndarray | None = None


def load(
    path: str | Path,
    *,
    dtype: Dtype | None = None,
    tokenizer: str | Path | None = None,
) -> Model:
    """Loads a model: a run folder, a Hugging Face folder, a GGUF file, or a forecaster.

        >>> m = pj.load("smollm2")
        >>> m.kind, m.cfg.width
        ('decoder', 576)

    Args:
      path: the folder or file.
      dtype: type of the parameters; None keeps what is stored.
      tokenizer: "bytes", a tokenizer.json or a folder with one; None takes the model's own.

    Raises:
      InputError: it is none of these, or cannot be read; or another dtype.
    """
    if dtype is not None:
        check_dtype(dtype)
    place = checkpoint_format(path)
    if place == "forecaster":
        if dtype is not None or tokenizer is not None:
            raise InputError(f"{path} holds a forecaster, which has one dtype and no tokenizer")
        return from_forecaster(forecaster.load(path), path)
    if place == "gguf":
        opened = open_gguf(path)
        params, cfg = hf.load(opened, dtype=dtype)
        own = None if tokenizer is not None else _of_gguf(opened)
    else:
        params, cfg, found = open_checkpoint(path, dtype=dtype)
        own = None if tokenizer is not None else _own(found)
    if tokenizer is not None:
        own = load_tokenizer(tokenizer, checkpoint=None if place == "gguf" else path)
    return Model(registry.kind_of(cfg).name, params, cfg, own, str(path))


def check_dtype(dtype: Any) -> None:
    """Checks that a type of numbers is one of `Dtype`.

    Raises:
      InputError: it is another, or no name of one.
    """
    check_choice("dtype", dtype, get_args(Dtype))


def from_forecaster(found: Forecaster, path: str | Path = "") -> Model:
    """A forecaster as a model."""
    return Model("forecaster", found.params, found.cfg, None, str(path), found.half_width)


def as_forecaster(model: Model) -> Forecaster:
    """The forecaster that a model holds.

    Raises:
      InputError: it is another kind of model.
    """
    expect(model, "forecaster")
    return Forecaster(model.cfg, model.params, model.half_width)


def expect(model: Model, *kinds: str) -> None:
    """Checks that the model is of one of these kinds.

    Raises:
      InputError: it is not.
    """
    if not isinstance(model, Model):
        raise InputError(f"need a model, as `pangu_jax.load` gives it, got {model!r:.60}")
    if model.kind not in kinds:
        raise InputError(
            f"{model.path or 'the model'} is of the kind {model.kind}; this takes the kind "
            f"{' or '.join(kinds)}"
        )


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      InputError: it has none.
    """
    if model.tokenizer is None:
        raise InputError(
            f"{model.path or 'the model'} has no tokenizer; give one to `load`, such as "
            'tokenizer="tokenizer.json"'
        )
    return model.tokenizer


def checkpoint_of(model: Model) -> str:
    """The folder of a model, for what copies files that lie beside it.

    Raises:
      InputError: it was read from a GGUF file, or from nowhere.
    """
    if not model.path:
        raise InputError("the model was not read from a folder; this needs one")
    if checkpoint_format(model.path) == "gguf":
        raise InputError(
            f"{model.path} is a GGUF file; `pangu-jax convert {model.path} FOLDER` makes it a "
            "checkpoint, which this takes"
        )
    return model.path


def _own(found: str) -> Tokenizer | None:
    """The tokenizer of a folder, or "bytes"; one that is there but cannot be read is an error."""
    if found != "bytes" and not any((Path(found) / name).exists() for name in TOKENIZERS):
        return None
    return load_tokenizer(found)


def _of_gguf(opened: Gguf) -> Tokenizer | None:
    fields = {name: opened.value(name) for name in opened.fields if name.startswith("tokenizer.")}
    if not fields:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_gguf.tokenizer_files(fields, opened.path).items():
            (Path(folder) / name).write_bytes(content)
        return dataclasses.replace(load_tokenizer(folder), name=str(opened.path))
