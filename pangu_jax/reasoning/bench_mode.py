"""How questions of benchmarks may be put to a model."""

from typing import Literal

Mode = Literal["plain", "few-shot", "chat", "slow", "fast", "auto"]
TEXTS = ("plain", "few-shot")  # the modes that need no chat template
