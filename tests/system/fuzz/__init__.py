"""Sound files with something changed, by seed: what `test_fuzz.py` and `tools/fuzz.py` run."""

from .kinds import KINDS
from .read import run

__all__ = ["KINDS", "run"]
