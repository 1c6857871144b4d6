"""Prints what a checkpoint is: architecture, parameters, memory, key and value bytes per token.

Reads the configuration alone, and the headers of tensor files where there are any, so that a folder
with just a config.json is enough and a large checkpoint takes no longer than a small one.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """What to inspect."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, a folder in the Hugging Face layout, of which config.json is enough, a GGUF
    file, or a trained forecaster's folder."""
    json: bool = False
    """Print one JSON object instead of text."""
    verify: bool = False
    """Read all of a Hugging Face folder: whether its files fit together, hold finite values, and
    have the checksums that came with them."""
