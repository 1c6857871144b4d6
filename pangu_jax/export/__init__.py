"""Compiled artifacts: StableHLO for CPU, GPU and TPU; ONNX, and from it Ascend; each checked."""

import importlib
import sys
import types
from typing import Any


class _Room(types.ModuleType):
    """This package, which is `pangu_jax.export` of the public face as well.

    Both have one name, and importing the package sets that name: so the package can be called.
    """

    def __call__(self, model: Any, out: Any, *, target: str, **options: Any) -> Any:
        """See `pangu_jax.cli.export.export`, which this is."""
        command = importlib.import_module("pangu_jax.cli.export")
        return command.export(model, out, target=target, **options)


sys.modules[__name__].__class__ = _Room
