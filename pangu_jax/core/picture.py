"""Pictures as files: one of three formats, written whole or not at all."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_jax.core.errors import InputError
from pangu_jax.core.files import atomic_write

FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: str | Path) -> None:
    """Checks that a path ends as a picture's does.

    Raises:
      InputError: it ends in none of `FORMATS`.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"{path} ends in none of {', '.join(FORMATS)}")


@contextlib.contextmanager
def picture(path: str | Path, **options: Any) -> Iterator[Any]:
    """Yields a figure of matplotlib's to draw on, and writes it when the block ends.

    No window opens, and ids in an SVG are not drawn at random.

    Args:
      path: a .png, .svg or .pdf file.
      **options: of `matplotlib.figure.Figure`, such as figsize and layout.

    Raises:
      InputError: another ending, or it cannot be written.
    """
    check_picture(path)
    import matplotlib  # here, as core is imported where nothing is drawn
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "pangu_jax"}):
        figure = Figure(**options)
        yield figure
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format=Path(path).suffix[1:].lower())
    with atomic_write(path, "wb") as file:
        file.write(content.getvalue())
