"""Serves a trained model over HTTP with OpenAI's API, many requests at once.

The defaults of a request are OpenAI's: temperature 1, top-p 1, no top-k. Of a checkpoint's
generation_config.json only the begin and end of text are used.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """What to serve, and where."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, or a folder in the Hugging Face layout."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """The port to listen on; 0 takes a free one, and prints it."""
    name: str | None = None
    """What clients call the model; None is the folder's name."""
    slots: int = 8
    """How many requests are decoded at once."""
    length: int | None = None
    """Tokens of a prompt and its answer together; None is what the model was made for, up to
    4096."""
    queue: int = 64
    """How many requests may queue for a slot; beyond that clients are asked to retry."""
    burst: int = 4
    """Tokens decoded between checks for new requests."""
    warm: int = 16
    """Prompt lengths up to this many tokens are compiled before serving starts; a longer prompt
    compiles on demand while the others wait."""
    template: str = "auto"
    """Chat template: pangu, llama3, chatml; "auto" takes the checkpoint's own."""
    drain: float = 30.0
    """Seconds that open requests have to finish after SIGTERM or SIGINT."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters, activations and cache."""
