"""The configuration of TimePro; see `timepro` for the letters."""

import dataclasses

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.nn.mixer_config import MixerConfig
from pangu_jax.nn.patch_count import patch_count


@dataclasses.dataclass(frozen=True)
class TimeProConfig:
    """The complete description of a model; the number of variates is not part of it.

    Attributes:
      look_back: T, input steps.
      horizon: H, steps that are forecast.
      layers: blocks.
      channels: C, of one patch; a multiple of 16.
      patch: steps per patch.
      stride: steps between patches.
      dropout: on the embedded patches while training.
      normalize: whether windows are normalized.
      state: False leaves the state branch out (the ablation): every series is then forecast from
        its own past alone.
    """

    look_back: int = 96
    horizon: int = 96
    layers: int = 2
    channels: int = 16
    patch: int = 12
    stride: int = 6
    dropout: float = 0.1
    normalize: bool = True
    state: bool = True

    def __post_init__(self):
        for name in ("look_back", "horizon", "layers", "patch", "stride"):
            most = 10_000 if name == "layers" else 2**31 - 1
            check_size(name, getattr(self, name), most=most)
        if self.patch > self.look_back:
            raise InputError(f"patch {self.patch} exceeds the look-back of {self.look_back}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")
        self.mixer  # noqa: B018  (refuses channels that do not fit)

    @property
    def mixer(self) -> MixerConfig:
        """Sizes of the mixers."""
        count = patch_count(self.look_back, self.patch, self.stride)
        return MixerConfig(count, self.channels, self.state)

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.mixer.width
