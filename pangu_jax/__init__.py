"""pangu_jax: grouped experts, pruning, forecasting and reasoning methods as pure functions.

    import pangu_jax as pj

    m = pj.load("smollm2")     # or a run folder, a GGUF file, a forecaster
    pj.generate(m, ["Once upon a time"])

Importing this touches no device and takes no time: what a name needs is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; `__getattr__` does it when asked
    from pangu_jax import export
    from pangu_jax.core.errors import InputError
    from pangu_jax.task.evaluate import evaluate
    from pangu_jax.task.forecast import fit, forecast
    from pangu_jax.task.language import embed, generate
    from pangu_jax.task.model import Model, load
    from pangu_jax.task.prune import prune

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "Model",
    "embed",
    "evaluate",
    "export",
    "fit",
    "forecast",
    "generate",
    "load",
    "prune",
]
_PLACES = {
    "InputError": "core.errors",
    "Model": "task.model",
    "embed": "task.language",
    "evaluate": "task.evaluate",
    "export": "export",  # the room, which can be called
    "fit": "task.forecast",
    "forecast": "task.forecast",
    "generate": "task.language",
    "load": "task.model",
    "prune": "task.prune",
}


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PLACES[name]}")
    globals()[name] = module if _PLACES[name] == name else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *__all__})
