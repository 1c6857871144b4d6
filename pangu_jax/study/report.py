"""report.md of a run, and the parts that every report has."""

import platform
from pathlib import Path

import jax

from pangu_jax.core.files import atomic_write


def write(folder: Path, text: str) -> Path:
    """Writes report.md, whole or not at all; returns its path.

    Raises:
      InputError: it cannot be written.
    """
    path = folder / "report.md"
    with atomic_write(path) as file:
        file.write(text)
    return path


def machine() -> str:
    """The device, the processor's architecture and jax's version, in words."""
    return f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"


def listed(values) -> str:
    """Values with commas between them."""
    return ", ".join(map(str, values))
