"""Compares expressions in a process of its own: a script that imports nothing of this package.

It reads one JSON object a line from stdin, {"gold", "answer": texts, "seconds": of the processor},
and answers each by one on stdout: {"equal": bool}, or {"equal": null} where the right answer is no
expression or comparing failed. What runs too long ends with it. Arguments: bytes of memory it may
take, and folders to import math_verify from.
"""

import sys

if __name__ == "__main__":
    sys.path += sys.argv[2:]

import contextlib
import json
import logging
import re
import resource
import time
from typing import Any

# Plain forms that the library reads as something else, or not at all.
REWRITTEN = (
    (r"\\varnothing", r"\\emptyset"),
    (r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))", ""),  # between groups of digits
    (r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])", r"\1\\times10^{\2}"),
    (r"\^\s*(-?\d+)", r"^{\1}"),  # x^10, which in LaTeX is x^1 0
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"(\d*)\.(\d*)\\overline\{(\d+)\}", lambda found: repeating(*found.groups())),
)
# Names of one unit, the first its own; plurals are told by their s.
UNITS = (
    *(
        "mm millimeter",
        "cm centimeter",
        "m meter metre",
        "km kilometer",
        "in inch inche",
        "ft foot feet",
    ),
    *("yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram", "oz ounce", "lb pound"),
    *("s sec second", "min minute", "h hr hour", "day", "week", "month", "year", "cent", "dollar"),
    *("ml milliliter millilitre", "l liter litre", "degree", "radian", "mph"),
)
NAMES = {name: names.split()[0] for names in UNITS for name in names.split()}


def repeating(whole: str, fixed: str, again: str) -> str:
    """A decimal whose last digits go on for ever, as a fraction."""
    top = int(whole + fixed + again) - int(whole + fixed or "0")
    return f"\\frac{{{top}}}{{{(10 ** len(again) - 1) * 10 ** len(fixed)}}}"


def plain(text: str) -> str:
    """LaTeX that says what a text means."""
    while "**" in text:  # from the right, as powers are taken
        before, _, after = text.rpartition("**")
        power = re.match(r"\s*(?:\(([^()]*)\)|(-?\w[\w.]*))(\^\{.*\})?", after)
        if power is None:
            return ""
        inner = f"({power[1]})" if power[1] and power[3] else power[1] or power[2]
        text = f"{before}^{{{inner}{power[3] or ''}}}{after[power.end() :]}"
    for pattern, instead in REWRITTEN:
        text = re.sub(pattern, instead, text)
    text = text.strip().rstrip(".$")
    written = re.search(r"(?<=[\d})])\s+[A-Za-z]{2,}$", text)  # "3 centimeters"
    text = text[: written.start()] if written and named(written[0]) else text
    return text.strip().strip("$").rstrip(".").strip()


# A number, and what stands behind it: "x = 24\,\text{cm}^2". In "m + s" letters are variables.
_QUANTITY = re.compile(
    r"(?:[^=]*=)?[\s$]*[-+\u2212]?\s*(?:[\d.,]*\d|\d*\s*\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})\s*[\s$~]*"
    r"(?:\\[,;:! ]\s*)*(?:\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}|([A-Za-z\s]+))"
    r"[\s$]*(?:\^\s*\{?\d\}?)?[\s$.]*"
)


def unit(text: str) -> str | None:
    """The unit of a quantity, if it is one of `UNITS`."""
    found = _QUANTITY.fullmatch(text)
    return named(found[1] or found[2]) if found else None


def named(text: str) -> str | None:
    """The unit that some words end in, if it is one of `UNITS`."""
    words = re.findall(r"[a-z]+", text.lower())
    last = words[-1] if words else ""
    return NAMES.get(last) or NAMES.get(last.removesuffix("s"))


def parsed(text: str) -> list:
    """What a text is as an expression; nothing where it is none."""
    import math_verify  # here, as importing it sets a variable

    # Formulas only: else the library takes the last number of what it cannot read. The process has
    # bounds of its own: with the library's alarms an error would look like "wrong".
    found = math_verify.parse(
        f"${plain(text)}$",
        extraction_config=[math_verify.LatexExtractionConfig()],
        parsing_timeout=None,
    )
    # Whether i is the unit depends on the formula's look; of equal ones either may be.
    return [with_unit(x) for x in found]


def with_unit(expression: Any) -> Any:
    """The same with the imaginary unit for a symbol i; what is no expression, as it is."""
    import sympy

    if not isinstance(expression, sympy.Expr):
        return expression
    units = [symbol for symbol in expression.free_symbols if symbol.name == "i"]
    return expression.subs(dict.fromkeys(units, sympy.I))


def equal(gold: str, answer: str) -> bool | None:
    """Whether two texts are the same expression. Per cent signs and units may be left out."""
    import math_verify

    wanted, found = parsed(gold), parsed(answer)
    if not wanted:
        return None
    units = unit(gold), unit(answer)
    if all(units) and units[0] != units[1]:
        return False
    without = re.sub(r"\s*\\?%$", "", gold.strip())
    golds = [wanted] if without == gold.strip() else [wanted, parsed(without)]
    options = {"timeout_seconds": None, "allow_set_relation_comp": True}
    return any(math_verify.verify(gold, found, **options) for gold in golds)


def main() -> None:
    """Answers until the input ends."""
    memory = int(sys.argv[1])
    with contextlib.suppress(OSError, ValueError):  # not every system bounds memory so
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    logging.disable(logging.CRITICAL)
    equal("\\frac{1}{2}", "0.5")  # what the library makes at its first use is there then
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        limit = int(time.process_time()) + 1 + request["seconds"]
        with contextlib.suppress(OSError, ValueError):  # a smaller bound of the system's holds
            resource.setrlimit(resource.RLIMIT_CPU, (limit, most))
        found = None
        with contextlib.suppress(Exception):  # the library's own can be anything
            found = equal(request["gold"], request["answer"])
        print(json.dumps({"equal": found}), flush=True)


if __name__ == "__main__":
    main()
