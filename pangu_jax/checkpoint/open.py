"""One way to open whatever holds a decoder: a run folder of ours, or a Hugging Face one."""

import os
from pathlib import Path
from typing import Any, Literal

from pangu_jax.checkpoint import gguf_file, hf, store
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.sharding.layout import Layout


def open_checkpoint(
    path: str | Path, *, dtype: Any = None, layout: Layout | None = None
) -> tuple[Any, DecoderConfig, str]:
    """Parameters, configuration, and where the tokeniser is.

    Args:
      path: a run folder (model.json, checkpoints/) or a Hugging Face folder (config.json,
        safetensors).
      dtype: type of the parameters; None keeps what is stored.
      layout: where they live; None is the default device.

    Returns:
      The parameters, the configuration, and what `data.tokenizer.load_tokenizer` takes: the
      folder, or "bytes" for a run of ours that holds no tokenizer.json. A Hugging Face folder
      without one gives itself, so that asking for its tokeniser is an error and not bytes.

    Raises:
      InputError: the folder is neither, or cannot be read.
    """
    path = Path(path)
    kind = holds(path)
    if kind == "gguf":
        raise InputError(
            f"{path} is a GGUF file; `pangu-jax convert {path} FOLDER` makes it a checkpoint"
        )
    if kind == "run":
        params, cfg = store.restore_params(path, dtype=dtype, layout=layout)
        own = (path / "tokenizer.json").is_file()
        return params, cfg, str(path) if own else "bytes"
    params, cfg = hf.load(path, dtype=dtype, layout=layout)
    return params, cfg, str(path)


def holds(path: str | Path) -> Literal["run", "hf", "gguf"]:
    """Whether a path is a run of ours, a Hugging Face folder, or a GGUF file.

    Raises:
      InputError: it is none of these.
    """
    if gguf_file.is_gguf(path):
        return "gguf"
    # A run has a config.json too. os.path, unlike Path, finds names that are too long absent; and a
    # link to nothing, as in a copy of a snapshot without its blobs, is for the reader to name.
    if os.path.lexists(Path(path) / store.MODEL):
        return "run"
    if os.path.lexists(Path(path) / hf.CONFIG):
        return "hf"
    raise InputError(
        f"{path!s:.200} is no checkpoint: it has neither {store.MODEL} (a run of ours) nor "
        f"{hf.CONFIG} (a Hugging Face folder), and is no GGUF file"
    )
