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
        """See `pangu_jax.task.export.export`, which this is."""
        task = importlib.import_module("pangu_jax.task.export")
        return task.export(model, out, target=target, **options)


sys.modules[__name__].__class__ = _Room
