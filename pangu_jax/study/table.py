"""Markdown tables, and figures with their spread over seeds or draws."""

from collections.abc import Iterable, Sequence

import numpy as np


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: a header line, then a line per row; no line break at the end."""
    lines = [_line(head), "|---" * len(head) + "|", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def mean_std(values: Sequence[float], digits: int = 3) -> str:
    """The mean ± sample standard deviation (ddof 1); the value itself if there is one."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def extent(values: Sequence[float], digits: int = 3) -> str:
    """The mean and, for several values, their range: "mean (least-greatest)"."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def standard_error(*samples: Sequence[float]) -> float:
    """Standard error of a sum or difference of sample means; each sample needs two values."""
    return float(np.sqrt(np.sum([np.var(v, ddof=1) / len(v) for v in samples])))
