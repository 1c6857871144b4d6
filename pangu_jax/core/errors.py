"""The one exception that bad input raises."""

import re

WORD, SENTENCE = 300, 600  # characters that are shown of a word, and of a sentence


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence that says what is wrong and why.

    The message names the file, field or tensor, what was found and what would be accepted. It may
    quote what was found as it is: line breaks become spaces, other control characters are written
    as escapes, and a word or a sentence that is too long to be read is cut in its middle.
    The command line prints it and exits with status 2; no traceback is shown.
    """

    def __init__(self, message: object):
        """Reduces the message to one printable line."""
        text = re.sub(r"\s*[\t\r\n]\s*", " ", str(message).strip())
        text = re.sub(r"[^\S ]|[\x00-\x1f\x7f\ud800-\udfff]", _escaped, text)
        super().__init__(_cut(re.sub(rf"\S{{{WORD},}}", _shortened, text), SENTENCE))


def _escaped(found: re.Match) -> str:
    return ascii(found[0])[1:-1]


def _shortened(found: re.Match) -> str:
    return _cut(found[0], WORD // 3)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}… …{text[-(limit // 3) :]}"
