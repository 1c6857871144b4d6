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
      folder, or "bytes" for a run of ours that holds no tokenizer.json. A Hugging Face folder
      without one gives itself, so that asking for its tokeniser is an error and not bytes.

    Raises:
      InputError: the folder is neither, or cannot be read.
    """
    path = Path(path)
    if (path / store.MODEL).is_file():
        params, cfg = store.restore_params(path, dtype=dtype, layout=layout)
        own = (path / "tokenizer.json").is_file()
        return params, cfg, str(path) if own else "bytes"
    if (path / "config.json").is_file():
        params, cfg = hf.load(path, dtype=dtype, layout=layout)
        return params, cfg, str(path)
    raise InputError(
        f"{path} is no checkpoint: it has neither {store.MODEL} (a run of ours) nor "
        "config.json (a Hugging Face folder)"
    )
