"""Sizes of TimePro's mixer; see `ssm` for the letters."""

import dataclasses

from pangu_jax.core.errors import InputError

GROUP = 16  # channels that are sampled alike


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Sizes of one mixer.

    Attributes:
      patches: P.
      channels: C, a multiple of 16.
      state: whether there is a state at all; without it the mixer sees one variate at a time.
    """

    patches: int
    channels: int
    state: bool = True

    def __post_init__(self):
        if self.patches < 1:
            raise InputError(f"patches must be at least 1, got {self.patches}")
        if self.channels < GROUP or self.channels % GROUP:
            raise InputError(f"channels must be a multiple of {GROUP}, got {self.channels}")

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.patches * self.channels

    @property
    def rank(self) -> int:
        """R, the rank of the step size."""
        return -(-self.width // 16)

    @property
    def groups(self) -> int:
        """Number of channel groups that share sampling locations."""
        return self.channels // GROUP
