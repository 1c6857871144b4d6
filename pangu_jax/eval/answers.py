"""The answer that a text ends in, and whether it is the right one.

Which forms are looked for, and in which order, is our own choice: the papers do not say.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from pangu_jax.core.errors import InputError
from pangu_jax.eval.answers_maths import equal_maths

_DIGITS = r"(?>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_SHARE = r"(?:\{\s*[-+\u2212]?\s*\d[\d,]*(?:\.\d+)?\s*\}|\d)"
_FRAC = rf"\\[dt]?frac\s*{_SHARE}\s*{_SHARE}"
_POWER = r"10\s*\^\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+)"
# A sign counts where nothing stands before it that it could be subtracted from. What is an
# exponent, or has one that is no power of ten, is no number: cm^2, 2^3.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.])[-+\u2212])?(?:\\?[$€£])?(?<![A-Za-z_^\d])(?<!\^\{)"
    rf"(?:(?P<power>{_POWER})|(?P<frac>{_FRAC})|(?P<whole>\d+)(?:\s*(?P<part>{_FRAC})|"
    rf"\s+(?P<top>\d+)/(?P<under>\d+)(?![\d/]))|(?P<digits>{_DIGITS})(?:(?P<e>e[-+]?\d+)|"
    rf"\s*(?:\\times|\\cdot|[×*x])\s*(?P<ten>{_POWER})|\s*/\s*(?P<over>\d+)(?!\d|\s*/))?)"
    r"(?!\s*\^(?!\s*\{?\s*\\(?:circ|degree)))(?:\s+(?P<word>thousand|million|billion)\b)?",
    re.I,
)
_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
# What makes a number beside it a part of something that is not worked out.
_SIGN = r"(?:[-+*/^×·÷\u2212]|\\(?:times|cdot|div|pm))"
_NEXT = re.compile(rf"\s*{_SIGN}\s*[\[({{]*\s*(?:\\?[$€£])?(?:\\(?:sqrt|[dt]?frac)|[\d.])")
_BEFORE = re.compile(
    rf"(?:[\w)\]}}%]\s*{_SIGN}|\\sqrt|\\pm|\\[dt]?frac(?:\s*\{{[^{{}}]*\}})?)\s*[\[({{]*\s*"
    r"(?:\\?[$€£])?$"
)
_SIDE = re.compile(r"[,;(]|\b(?:where|when|if|with|as)\b")
_IS = r"(?:\s+(?:is|was|are|(?:should|would|must|will)\s+be)\b|\s*[:=：])"
_SAID = re.compile(
    rf"(?:\b(?:answer|result){_IS}(?:\s*:)?|答案(?:是|为|[:：])[:：]?)([\s*]*)", re.I
)
_MARKED = re.compile(r"^####[ \t]*(.+)$", re.M)
_END = re.compile(r"\n|([.!?;])(?=\s|$)|。|,?\s\(?(?:because|since)\s", re.I)
# Prices are no formula: "$5. Then $7", "$5 + $10", "$15*2=$30".
_FORMULA = re.compile(
    r"\$(?![\s$])((?:\\.|(?![.!?;]\s)[^$\n\\])+)(?<![\s=+*/×])\$(?!\d)|(?:\$\$|\\\(|\\\[)(.+?)(?:\$\$|\\\)|\\\])",
    re.DOTALL,
)
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.M | re.S)
_BOX = r"\\(?:boxed|fbox)\s*\{"
_BRACES = re.compile(rf"{_BOX}|\\(?!{_BOX}).|[{{}}]", re.S)
# A letter, and what may stand before it. A and I are words where another one follows.
_MARKS = r"(?:[\s*$_`\"'“‘{(\[:：]|\\(?:text|mathrm|textbf|mathbf|textit)\s*\{|\\[(\[])*"
_SURELY = r"therefore|thus|clearly|probably|(?:most\s+)?likely|definitely|actually|indeed|still"
_LEAD = rf"{_MARKS}(?:(?:{_SURELY}|the|option|choice|letter)\b{_MARKS})*"
_ONE = (
    r"([A-Z])(?![\w'’])(?!\W{0,3}\s*(?:or|/|&)\s*\W{0,3}[A-Z]\b)"
    r"(?!\W{0,3}\s*and\s*\W{0,3}[A-Z]\b(?!\s+(?!are\b|both\b)[a-z]))"  # but "B, and I am sure"
    r"(?<![AI](?=\s(?!(?:because|since|as|is|and|or|which|with|for|by|in)\b)[a-z]))"
)
_LETTER = re.compile(rf"(?i:{_LEAD}){_ONE}")
_CHOSEN = re.compile(
    rf"(?i:\b(?:correct|right|best)(?:\s+(?:answer|option|choice|letter))?{_IS}|\b(?:choose|pick|select|"
    rf"(?:it|answer)\s+(?:is|must\s+be)|it's)\s)(?i:{_LEAD}){_ONE}|"
    rf"(?<![\w'’]){_ONE}[)\]]?\s+is\s+(?:therefore\s+)?(?:the\s+)?(?:correct|right|best)\b"
)
_ALONE = re.compile(rf"(?i:{_LEAD})([A-Za-z])\W*")
LONGEST, LARGEST = 1000, 9999  # characters, and the exponent, of a number that is read
LAST = 20  # places where an answer may be said to be


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
    r"""What the last \\boxed{...} or \\fbox{...} holds that is closed and not empty."""
    open_now: list[re.Match | None] = []  # of boxes, and None of other braces
    last: tuple[int, int] | None = None
    for part in _BRACES.finditer(text):
        if part[0].endswith("{") and part[0] != "\\{":
            open_now.append(part if part[0] != "{" else None)
        elif part[0] == "}" and open_now:
            box = open_now.pop()
            later = box is not None and (last is None or box.end() > last[0])
            if later and text[box.end() : part.start()].strip():
                last = box.end(), part.start()
    return None if last is None else text[slice(*last)].strip()


def said(text: str) -> str | None:
    """What follows the last "#### ", else the last "answer is", up to the end of the sentence.

    A question is no answer, and nor is what begins on a line of its own and has more than four
    words: "Answer:" is a heading there.
    """
    marked = _MARKED.findall(text)
    if marked:
        return marked[-1].strip()
    for found in reversed(list(_SAID.finditer(text))[-LAST:]):
        rest = text[found.end() :]
        if formula := _FORMULA.match(rest):
            return (formula[1] or formula[2]).strip() or None
        end = _END.search(rest)
        rest = rest[: end.start()] if end else rest
        heading = "\n" in found[1] and len(rest.split()) > 4
        if not heading and not (end and end[1] == "?"):
            return rest.strip().strip("*").strip() or None
    return None


def maths(text: str) -> str | None:
    """An expression: boxed, else said to be the answer, else the last number."""
    for found in (boxed(text), said(text)):
        if found:
            return found
    return number(text)


def number(text: str) -> str | None:
    """The number that is boxed or said to be the answer, else the last of the whole text.

    It is the first, or what an equation there comes to: "x = 24 cm^2" and "24 cm^2 = x" are 24. A
    sum that is not worked out is given as it is, and is no number: "3 + 4", "2^3".
    """
    box = re.sub(r"(?<=\d) (?=\d{3}(?!\d))|(?<=^[-\u2212])\s+", "", boxed(text) or "")
    for part in (box, said(text)):
        if found := _stated(_tidy(part or "")):
            return found
    text = re.sub(r"^[ \t]*\d+[.)][ \t]+(?=\S)", "", _tidy(text), flags=re.M)  # "3. Then ..."
    every = [found[0].strip() for found in _NUMBER.finditer(text)]
    return every[-1] if every else None


def _tidy(text: str) -> str:
    """Without LaTeX's spaces between groups of digits."""
    return re.sub(r"(?<=\d)(?:\\[,;:! ]|~|[\u00a0\u202f]|\{,\}|,\\!)(?=\d{3}(?!\d))", "", text)


def _stated(part: str) -> str | None:
    """The number that a few words give."""
    first = _NUMBER.search(part)
    head, equals, _ = part[first.end() if first else 0 :].partition("=")
    begins = first and not re.search(r"\w", part[: first.start()])
    if begins and (not equals or not head.strip() or _SIDE.search(head)):
        return first[0].strip() if _alone(first) else part.strip()
    sides = [side for side in part.split("=") if re.search(r"\d", side)]
    if not sides:
        return None
    found = _NUMBER.search(sides[-1])
    return found[0].strip() if found and _alone(found) else sides[-1].strip()


def _alone(found: re.Match) -> bool:
    """Whether a number is no part of a sum or a product."""
    before, after = found.string[: found.start()], found.string[found.end() :]
    return not (_NEXT.match(after) or _BEFORE.search(before))


def letter(text: str) -> str | None:
    """The letter of a choice: boxed, said to be the answer, alone, chosen, or last in parentheses.

    Two of them, "A or B", are none.
    """
    for part in (boxed(text), said(text)):
        if part and (found := _LETTER.match(part) or _ALONE.fullmatch(part)):
            return found[1].upper()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for part in (text.strip(), lines[-1] if lines else ""):
        if found := _ALONE.fullmatch(part):
            return found[1].upper()
    if chosen := _CHOSEN.findall(text):
        return chosen[-1][0] or chosen[-1][1]
    inside = re.findall(r"\(([A-Z])\)", text)
    # Of a whole text the letter must be followed by the choice: "B. a fish".
    found = _LETTER.match(text.strip())
    if found and len(set(inside)) < 2 and re.match(r"[.):*]", found.string[found.end(1) :]):
        return found[1]
    return inside[-1] if inside else None


def boolean(text: str) -> str | None:
    """Yes or no: the first such word of what is boxed or said, else the last; "not true" is no."""
    for part, which in ((boxed(text), 0), (said(text), 0), (text, -1)):
        found = re.findall(r"\b(not\s+)?(yes|no|true|false)\b", (part or "").lower())
        if found:
            other, word = found[which]
            return "yes" if (word in ("yes", "true")) != bool(other) else "no"
    return None


def words(text: str) -> str | None:
    """What is boxed or said to be the answer, else the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return boxed(text) or said(text) or (lines[-1] if lines else None)


def code(text: str, names: Sequence[str] = ()) -> str | None:
    """The last fenced block that defines one of the names asked for, else the last.

    An example of its use often comes behind. A block that is not closed goes on to the end.
    """
    blocks = [block for _, block in _FENCE.findall(text)]
    heads = [re.compile(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(n)}\b", re.M) for n in names]
    named = [block for block in blocks if any(head.search(block) for head in heads)]
    return (named or blocks or [None])[-1]


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
    r"""The number that a text is: "$1,200.50", "3/4", "1\\frac{1}{2}", "12 apples", "-2e3".

    It is exact. Per cent signs and units are passed over.

    Returns:
      None where there is none, or one that is a part of a sum: "3 + 4".
    """
    text = _tidy(text.strip()).replace("!", "") if len(text) <= LONGEST else ""
    found = _NUMBER.search(text)
    if not found or not _alone(found):
        return None
    result = _size(found)
    return -result if result and found["sign"] in ("-", "\u2212") else result


def _size(found: re.Match) -> Fraction | None:
    """What the parts of a number come to; None where that is too large, or divides by 0."""
    powers = [
        int(re.sub(r"^10|[\s{}^e]", "", found[name], flags=re.I))
        for name in ("power", "e", "ten")
        if found[name]
    ]
    shares = [
        [
            Fraction(re.sub(r"[{},\s]", "", x).replace("\u2212", "-"))
            for x in re.findall(_SHARE, found[name].partition("frac")[2])
        ]
        for name in ("frac", "part")
        if found[name]
    ]
    if found["under"]:
        shares.append([Fraction(found["top"]), Fraction(found["under"])])
    if found["over"]:
        shares.append([Fraction(1), Fraction(found["over"])])
    if any(abs(x) > LARGEST for x in powers) or not all(under for _, under in shares):
        return None
    digits = found["digits"] or found["whole"] or ("1" if found["power"] else "0")
    result = Fraction(digits.replace(",", "")) * Fraction(10) ** sum(powers)
    for top, under in shares:
        result = result * top / under if found["over"] else result + top / under
    return result * _WORDS.get((found["word"] or "").lower(), 1)


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
