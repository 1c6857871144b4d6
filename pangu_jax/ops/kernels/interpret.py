"""Kernels for Hopper GPUs on machines without one."""

from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu


def interpreter(interpret: bool) -> Any:
    """The interpreter that knows of this chip's memories and copies; jax 0.10 hides its name."""
    if not interpret:
        return None
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
