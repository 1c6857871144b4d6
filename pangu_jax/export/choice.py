"""Which implementation of each operator an artefact gets, read from the operators' own modules.

An operator's module says with `EXPORT` which form lowers everywhere, with `choose` what it picks
for a platform and a shape, and in the table of its docstring why. There is no second list here.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from pangu_jax import ops
from pangu_jax.core.platform import target


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an operator picks for one example, and the reason that its table gives."""

    operator: str
    example: str
    implementation: str
    reason: str


def operators() -> Iterator[tuple[str, ModuleType]]:
    """The operators: modules of `pangu_jax.ops` that have a form for export."""
    for found in pkgutil.iter_modules(ops.__path__):
        if not found.ispkg:
            module = importlib.import_module(f"{ops.__name__}.{found.name}")
            if hasattr(module, "EXPORT"):
                yield found.name, module


def export_forms() -> dict[str, str]:
    """{operator: the form that lowers everywhere}."""
    return {name: module.EXPORT for name, module in operators()}


def implementations(platforms: Sequence[str], *, static: bool) -> dict[str, str]:
    """What to pass as `impl` when tracing for platforms; absent operators choose by themselves.

    One platform and static shapes let an operator choose, if all its forms can be lowered from any
    machine; the tracing must then be inside `core.platform.targeting`. Else the export form holds.
    """
    forms = export_forms()
    if len(platforms) != 1 or not static:
        return forms
    return {
        name: forms[name]
        for name, module in operators()
        if not getattr(module, "LOWERS_ANYWHERE", False)
    }


def choices(platform: str | None = None) -> list[Choice]:
    """What each operator picks for its own examples on a platform; None is the present one."""
    platform = platform or target()
    found = []
    for name, module in operators():
        reasons = table(module)
        for example, arguments in getattr(module, "EXAMPLES", {}).items():
            picked = _choose(module, platform, arguments)
            found.append(Choice(name, example, picked, reasons.get(picked, "")))
        form = module.EXPORT
        found.append(Choice(name, "export", form, reasons.get(form, "")))
    return found


def _choose(module: ModuleType, platform: str, arguments: tuple[Any, ...]) -> str:
    return module.choose(platform, *arguments)


def table(module: ModuleType) -> dict[str, str]:
    """{implementation: the last cell of its row} of the table in a module's docstring."""
    rows = {}
    for line in (module.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.strip().startswith("|") and len(cells) > 1 and re.fullmatch(r"\w+", cells[0]):
            rows[cells[0]] = cells[-1]
    return {name: text for name, text in rows.items() if name not in ("implementation", "form")}
