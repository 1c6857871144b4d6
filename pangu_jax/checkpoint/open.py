"""One way to open whatever holds a decoder: a run folder of ours, or a Hugging Face one."""

from pathlib import Path
from typing import Any

from pangu_jax.checkpoint import hf, store
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
      folder where it holds a tokenizer.json, else "bytes".

    Raises:
      InputError: the folder is neither, or cannot be read.
    """
    path = Path(path)
    if (path / store.MODEL).is_file():
        params, cfg = store.restore_params(path, dtype=dtype, layout=layout)
    elif (path / "config.json").is_file():
        params, cfg = hf.load(path, dtype=dtype, layout=layout)
    else:
        raise InputError(
            f"{path} is no checkpoint: it has neither {store.MODEL} (a run of ours) nor "
            "config.json (a Hugging Face folder)"
        )
    return params, cfg, str(path) if (path / "tokenizer.json").is_file() else "bytes"
