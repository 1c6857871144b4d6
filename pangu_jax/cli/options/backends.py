"""Prints this machine's devices, and which implementation each operator would use."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What to print."""

    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Choices for this platform; None is the current one."""
    json: bool = False
    """Print one JSON object instead of text."""
