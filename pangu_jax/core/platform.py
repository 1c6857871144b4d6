"""The platform to trace for: this machine's, unless an export names another."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


def target() -> str:
    """The platform operators choose their implementation for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def targeting(platform: str) -> Iterator[None]:
    """Context manager: traces as if for `platform`."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def chip() -> str:
    """As `target`, but "hopper" where this machine's GPU is of that generation.

    Code that is traced for another machine gets no kernels that only one generation runs.
    """
    name = target()
    if _TARGET.get() is None and name == "gpu" and _capability() == "9.0":
        return "hopper"
    return name


def _capability() -> str:
    return str(getattr(jax.devices()[0], "compute_capability", ""))
