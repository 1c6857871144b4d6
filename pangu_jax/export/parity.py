"""Comparison of an artifact's results with jax's, within a tolerance."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError

# max|difference| / max|reference| that an artifact may have, by the type it computes in. In float32
# a language model of 30 layers was seen to differ by 2.1e-5 in a key it caches, on random tokens,
# and by 3e-6 in its logits: sums in another order. "default" is float32 whose products the platform
# may round (a GPU to TF32, ten bits). bfloat16 rounds every activation to eight bits: between a CPU
# and an H100 a model of five layers was seen to differ by 5e-2 in the values it caches and by
# 1.4e-2 in its logits.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1, "default": 1e-2}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      program: name of the program.
      sample: name of the inputs.
      output: name of the result; results that differ in a number alone are merged.
      absolute: max|difference|.
      relative: that over max|reference|; infinite if whole numbers differ or one is NaN.
    """

    program: str
    sample: str
    output: str
    absolute: float
    relative: float


def compare(
    program: str, sample: str, wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[Row]:
    """A row for each kind of result, with the worst error among its numbers.

    Args:
      program: name for the rows.
      sample: name for the rows.
      wanted: jax's results.
      found: the artifact's.

    Raises:
      InputError: a result is missing or has another shape.
    """
    rows: dict[str, Row] = {}
    for name, reference in wanted.items():
        if name not in found:
            raise InputError(f"{program} gave no {name}")
        absolute, relative = errors(reference, found[name], f"{program}: {name}")
        kind = re.sub(r"_\d+$", "", name)
        kept = rows.get(kind)
        if kept is None or relative > kept.relative:
            rows[kind] = Row(program, sample, kind, absolute, relative)
    return list(rows.values())


def errors(reference: Any, found: Any, where: str = "result") -> tuple[float, float]:
    """max|difference| and max|difference| / max|reference|; infinite if they cannot be compared.

    Equal infinities agree, as masks may produce them. NaN agrees with nothing, not even itself, as
    it would hide whatever else is wrong.
    """
    reference, found = np.asarray(reference), np.asarray(found)
    if reference.shape != found.shape:
        raise InputError(f"{where} has shape {found.shape}, jax gives {reference.shape}")
    if reference.dtype.kind in "biu":
        same = bool((reference == found).all())
        return (0.0, 0.0) if same else (float("inf"), float("inf"))
    a, b = reference.astype(np.float64), found.astype(np.float64)
    usual = np.isfinite(a)
    if not (usual == np.isfinite(b)).all() or not np.array_equal(a[~usual], b[~usual]):
        return float("inf"), float("inf")
    a, b = a[usual], b[usual]
    absolute = float(np.abs(a - b).max(initial=0.0))
    scale = float(np.abs(a).max(initial=0.0))
    return absolute, 0.0 if absolute == 0 else (absolute / scale if scale else float("inf"))


def require(
    rows: Iterable[Row], tolerance: float, consequence: str = "nothing was written"
) -> None:
    """Checks that every row is within the tolerance.

    Raises:
      InputError: names the worst row.
    """
    failed = [row for row in rows if not row.relative <= tolerance]
    if failed:
        worst = max(failed, key=lambda row: np.nan_to_num(row.relative, nan=np.inf))
        by = (
            f"by {worst.relative:.1e} of its greatest value, over the tolerance {tolerance:.0e}"
            if np.isfinite(worst.relative)
            else "in NaN, an infinity or a whole number, which no tolerance covers"
        )
        raise InputError(
            f"{worst.program} differs from jax: {worst.output} on the {worst.sample} sample {by}; "
            f"{consequence}"
        )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [("program", "sample", "result", "max abs", "max rel")]
    lines += [
        (r.program, r.sample, r.output, f"{r.absolute:.2e}", f"{r.relative:.2e}") for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
