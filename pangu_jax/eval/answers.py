"""The answer that a text ends in, and whether it is the right one.

Which forms are looked for, and in which order, is our own choice: the papers do not say.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from pangu_jax.core.errors import InputError
from pangu_jax.eval.answers_maths import equal_maths

# A sign counts where nothing stands before it that it could be subtracted from.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"((?<![\w)\]}}.])[-+\u2212])?[$€£]?(?<![A-Za-z_])({_DIGITS})(e[-+]?\d+)?", re.I
)
_FRACTION = re.compile(
    r"[$\s]*([-\u2212]?)\s*(?:\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}|(\d+)\s*/\s*(\d+))[$\s]*"
)
_SAID = re.compile(r"\b(?:answer|result)(?:\s+is|\s*[:=])(?:\s*:)?[ \t*]*\n?[ \t*]*", re.I)
_MARKED = re.compile(r"^####[ \t]*(.+)$", re.M)
_LETTER = re.compile(r"[\s*$]*(?:\\text\{)?[(\[]?([A-Z])(?![\w'’])")
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.M | re.S)
_BOX = r"\\(?:boxed|fbox)\s*\{"
_BRACES = re.compile(rf"{_BOX}|\\(?!{_BOX}).|[{{}}]", re.S)
LONGEST = 1000  # characters of a number that is read


def spoken(text: str, thinking: tuple[str, str] | None) -> str:
    """What is said after thinking.

    Args:
      text: all that a model wrote.
      thinking: what opens and closes a span of thinking, such as `Template.thinking`; None where
        the model has none.

    Returns:
      What follows the last close; nothing where a span was opened and never closed.
    """
    if thinking is None:
        return text
    start, end = thinking
    _, closed, after = text.rpartition(end)
    return "" if start in after else after if closed else text


def boxed(text: str) -> str | None:
    r"""What the last \\boxed{...} or \\fbox{...} holds that is closed; braces inside are paired."""
    open_now: list[re.Match | None] = []  # of boxes, and None of other braces
    last: tuple[int, int] | None = None
    for part in _BRACES.finditer(text):
        if part[0].endswith("{") and part[0] != "\\{":
            open_now.append(part if part[0] != "{" else None)
        elif part[0] == "}" and open_now:
            box = open_now.pop()
            if box is not None and (last is None or box.end() > last[0]):
                last = box.end(), part.start()
    return None if last is None else text[slice(*last)].strip()


def said(text: str) -> str | None:
    """What follows the last "#### ", else the last "answer is", up to the end of the sentence."""
    marked = _MARKED.findall(text)
    if marked:
        return marked[-1].strip()
    found = list(_SAID.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :]
    formula = re.match(r"(\$\$?|\\\(|\\\[)(.+?)(\$\$?|\\\)|\\\])", rest, re.DOTALL)
    rest = formula[2] if formula else re.split(r"\n|[.!?;](?=\s|$)", rest, maxsplit=1)[0]
    return rest.strip().strip("*").strip() or None


def maths(text: str) -> str | None:
    """An expression: boxed, else said to be the answer, else the last number."""
    for found in (boxed(text), said(text)):
        if found:
            return found
    return number(text)


def number(text: str) -> str | None:
    """The first number of what is boxed or said to be the answer, else the last of the whole text.

    In a box it is what follows the last equals sign, or a fraction: "x = 24 cm^2" is 24.
    """
    box = (boxed(text) or "").rpartition("=")[2]
    if whole := _FRACTION.fullmatch(box):
        return f"{whole[1]}{whole[2] or whole[4]}/{whole[3] or whole[5]}"
    for part, which in ((box, 0), (said(text), 0), (text, -1)):
        found = [m[0].strip() for m in _NUMBER.finditer(part or "")]
        if found:
            return found[which]
    return None


def letter(text: str) -> str | None:
    """The letter of a choice: boxed, said to be the answer, alone, or the last in parentheses."""
    for part in (boxed(text), said(text), text.strip().rstrip(".")):
        found = _LETTER.match(part or "")
        # Of a whole text the letter must be all, or be followed by the choice: "B. a fish".
        if found and (
            part != text.strip().rstrip(".") or re.match(r"[.):\s*]*$|[.):]", part[found.end(1) :])
        ):
            return found[1]
    inside = re.findall(r"\(([A-Z])\)", text)
    return inside[-1] if inside else None


def boolean(text: str) -> str | None:
    """Yes or no: the first such word of what is boxed or said, else the last of the text."""
    for part, which in ((boxed(text), 0), (said(text), 0), (text, -1)):
        found = re.findall(r"\b(yes|no|true|false)\b", (part or "").lower())
        if found:
            return {"true": "yes", "false": "no"}.get(found[which], found[which])
    return None


def words(text: str) -> str | None:
    """What is boxed or said to be the answer, else the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return boxed(text) or said(text) or (lines[-1] if lines else None)


def code(text: str) -> str | None:
    """The last fenced block; one that is not closed goes on to the end."""
    found = _FENCE.findall(text)
    return found[-1][1] if found else None


KINDS: dict[str, Callable[[str], str | None]] = {
    "maths": maths,
    "number": number,
    "letter": letter,
    "boolean": boolean,
    "words": words,
    "code": code,
}


def extract(text: str, kind: str, *, thinking: tuple[str, str] | None = None) -> str | None:
    """The answer that a text ends in; None where there is none.

    Args:
      text: what a model wrote.
      kind: one of `KINDS`, whose functions say what is looked for.
      thinking: see `spoken`; an answer in there is none.

    Raises:
      InputError: there is no such kind.
    """
    return _known(kind)(spoken(text, thinking))


def equal(gold: str, answer: str | None, kind: str) -> bool | None:
    """Whether an answer is the right one.

    Args:
      gold: the right one.
      answer: what `extract` found; None is wrong.
      kind: one of `KINDS` but "code", which is judged by running it.

    Returns:
      None where that cannot be told: `gold` is not of the kind, or comparing took too long. The
      sample should then be left out, not counted as wrong.

    Raises:
      InputError: there is no such kind.
    """
    _known(kind)
    if kind == "code":
        raise InputError("code is judged by running it, not by comparing it")
    if kind == "maths":
        return equal_maths(gold, answer)
    if kind == "number":
        wanted = value(gold)
        return None if wanted is None else _close(wanted, None if answer is None else value(answer))
    if kind in ("letter", "boolean"):
        wanted = KINDS[kind](gold)
        return None if wanted is None else answer is not None and KINDS[kind](answer) == wanted
    return answer is not None and _plain(gold) == _plain(answer)


def value(text: str) -> Fraction | None:
    """The number that a text is: "$1,200.50", "3/4", "12 apples", "-2e3"; None where there is none.

    It is exact. Per cent signs and units are passed over.
    """
    text = text.strip().replace("\\", "").replace("!", "") if len(text) <= LONGEST else ""
    found = _NUMBER.search(text)
    if not found or len(found[3] or "") > 5:
        return None
    result = Fraction(found[2].replace(",", "") + (found[3] or ""))
    over = re.match(r"\s*/\s*(\d+)", text[found.end() :])
    if over and int(over[1]):
        result /= int(over[1])
    return -result if (found[1] or "").strip() in ("-", "\u2212") else result


def _close(wanted: Fraction, found: Fraction | None) -> bool:
    """Equal, or within a millionth where the right one is no integer: it may have been rounded."""
    if found is None:
        return False
    return found == wanted or (
        wanted.denominator != 1 and abs(found - wanted) <= abs(wanted) / 10**6
    )


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def _known(kind: str) -> Callable[[str], str | None]:
    if kind not in KINDS:
        raise InputError(f"unknown kind of answer {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind]
