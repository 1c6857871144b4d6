"""How a text's vector is made of hidden states, as configurations say it."""

from typing import Literal, Protocol

from pangu_jax.core.errors import InputError

Pooling = Literal["cls", "mean", "weighted", "last", "max"]
Attention = Literal["causal", "bidirectional"]  # of a decoder whose states are pooled


class PoolingConfig(Protocol):
    """What the configurations of models that make vectors have.

    Attributes:
      pooling: which hidden states make a text's vector; None if unspecified.
      normalize: whether such vectors are scaled to length 1.
    """

    @property
    def pooling(self) -> Pooling | None: ...  # noqa: D102
    @property
    def normalize(self) -> bool: ...  # noqa: D102


def check_pooling(cfg: PoolingConfig) -> Pooling:
    """The model's pooling.

    Raises:
      InputError: it is unspecified.
    """
    if cfg.pooling is None:
        raise InputError(
            "the model's pooling is not known; it must be cls, mean, weighted, last or max"
        )
    return cfg.pooling
