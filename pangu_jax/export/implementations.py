"""Implementations of operators that an artifact uses, read from the operators' own modules.

An operator's module says with `EXPORT` which form lowers everywhere, with `choose` what it picks
for a platform and a shape, and in the table of its docstring why. There is no second list here.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

from pangu_jax import ops
from pangu_jax.core.platform import target


@dataclasses.dataclass(frozen=True)
class Choice:
    """An operator's choice for one example, with the reason given in its table."""

    operator: str
    example: str
    implementation: str
    reason: str


def operators() -> Iterator[tuple[str, ModuleType]]:
    """The operators: modules of `pangu_jax.ops` that have an export form."""
    for found in pkgutil.iter_modules(ops.__path__):
        if not found.ispkg:
            module = importlib.import_module(f"{ops.__name__}.{found.name}")
            if hasattr(module, "EXPORT"):
                yield found.name, module


def export_forms() -> dict[str, str]:
    """{operator: the form that lowers everywhere}."""
    found: dict[str, str] = {}
    for name, module in operators():
        found |= module.EXPORT if isinstance(module.EXPORT, dict) else {name: module.EXPORT}
    return found


def implementations(platforms: Sequence[str], *, static: bool) -> dict[str, str]:
    """The value of `impl` for tracing for platforms; absent operators choose by themselves.

    One platform and static shapes let an operator choose, if all its forms can be lowered from any
    machine; the tracing must then be inside `core.platform.targeting`. Else the export form holds.
    """
    forms = export_forms()
    if len(platforms) != 1 or not static:
        return forms
    free = {name for name, module in operators() if getattr(module, "LOWERS_ANYWHERE", False)}
    return {name: form for name, form in forms.items() if name not in free}


def choices(platform: str | None = None) -> list[Choice]:
    """Each operator's choices for its own examples on a platform; None is the current one.

    An operator that distinguishes more platforms than jax has a function `platform` for that.
    """
    found = []
    for name, module in operators():
        reasons = table(module)
        for example, arguments in getattr(module, "EXAMPLES", {}).items():
            here = platform or getattr(module, "platform", target)()
            picked = module.choose(here, *arguments)
            found.append(Choice(name, example, picked, reasons.get(picked, "")))
        forms = module.EXPORT if isinstance(module.EXPORT, dict) else {name: module.EXPORT}
        found += [Choice(n, "export", form, reasons.get(form, "")) for n, form in forms.items()]
    return found


def table(module: ModuleType) -> dict[str, str]:
    """{implementation: when it is picked}, from the table in a module's docstring."""
    rows, column = {}, None
    for line in (module.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if column is not None and len(cells) > column and re.fullmatch(r"\w+", cells[0]):
            rows[cells[0]] = cells[column]
        elif "picked when" in cells:
            column = cells.index("picked when")
    return rows
