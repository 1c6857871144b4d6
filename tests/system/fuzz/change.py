"""Changes of files that know a little of their format, drawn by seed."""

import copy
import json
import random
from typing import Any

SECRET = "secret-beside-the-folder"  # a file that no read may open

PIECES = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"'", b",", b"{", b"}", b"[", b"]",
    b"null", b"NaN", b"-1", b"1e999", b"9" * 30, b"\xed\xa0\x80", b"../", b"\xe2\x80\xa8",
)  # fmt: skip


def any_bytes(draw: random.Random, raw: bytes) -> bytes:
    """One to three small changes that know nothing of the format."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(data) + 1)
        length = draw.choice((1, 2, 8, 100, max(len(data) // 2, 1)))
        how = draw.randrange(7)
        if how == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif how == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = draw.choice(PIECES)
        elif how == 4:
            data[at:at] = data[at : at + length]
        elif how == 5:
            del data[at:]
        else:
            data[at : at + length] = draw.randbytes(min(length, 100))
    return bytes(data)


STRANGE = (
    None, True, False, 0, -1, 1, 2, 7, 10**8, 10**12, 10**400, 1.5, -0.0, 1e308, 1e-300,
    float("nan"), float("inf"), "", "x", "\x00", "x" * 5000, f"../{SECRET}", "/dev/zero", "ü\ud800",
    [], {}, [[]], [None], {"": None}, [0] * 1000, "0" * 64, "1e400", "2024-02-30",
)  # fmt: skip


def any_json(draw: random.Random, raw: bytes) -> bytes:
    """Another value, a key gone or twice, at any depth; now and then no JSON at all."""
    if draw.random() < 0.2:
        return any_bytes(draw, raw)
    value = json.loads(raw)
    text = None
    for _ in range(draw.choice((1, 1, 2))):
        box, key = draw.choice(_places(value))
        how = draw.randrange(6)
        if how <= 2 or box is None:
            value = _put(value, box, key, copy.deepcopy(draw.choice(STRANGE)))
        elif how == 3:
            del box[key]
        elif how == 4 and isinstance(box, dict):
            box[draw.choice(("", "x", key + "_", "__class__"))] = copy.deepcopy(box[key])
        elif how == 5:
            text = _twice(value, box, key)
        if text is not None:
            break
    text = json.dumps(value) if text is None else text
    if draw.random() < 0.03:
        text = "[" * 3000 + text + "]" * 3000
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value; (None, None) is the whole."""
    found: list[tuple[Any, Any]] = [(None, None)]
    stack = [value] if isinstance(value, dict | list) else []
    while stack:
        box = stack.pop()
        items = box.items() if isinstance(box, dict) else enumerate(box)
        for key, item in items:
            found.append((box, key))
            if isinstance(item, dict | list):
                stack.append(item)
    return found


def _put(value: Any, box: Any, key: Any, new: Any) -> Any:
    if box is None:
        return new
    box[key] = new
    return value


def _twice(value: Any, box: Any, key: Any) -> str:
    """The same with a key that is there twice, its second value another one."""
    if not isinstance(box, dict):
        return json.dumps(value)
    mark = "a key that is there twice"
    box[mark] = "other"
    return json.dumps(value).replace(json.dumps(mark), json.dumps(key))


FIELDS = (
    "", " ", "nan", "1_000", "1,000", "1e400", "-inf", "0x10", "\u0661\u0662", "\x00", '"', "a\nb",
    "0001-01-01T00:00+14:00", "9999-12-31T23:59:59-14:00", "2024-02-30", "2024-01-01T00:00:00.1",
    "2024-06-01", "20240101", "1700000000", "2024-01-01 24:00", "24-1-1", "12:00", "x" * 200_000,
    "2024-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00", "2204-01-01", "9" * 5000,
)  # fmt: skip


def any_csv(draw: random.Random, raw: bytes) -> bytes:
    """Fields, rows and columns changed, gone, moved or there twice."""
    if draw.random() < 0.2:
        return any_bytes(draw, raw)
    rows = [line.split(",") for line in raw.decode().split("\n")]
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(rows))
        column = draw.randrange(len(rows[at]))
        how = draw.randrange(9)
        if how <= 3:
            rows[at][column] = draw.choice(FIELDS)
        elif how == 4 and len(rows) > 1:
            del rows[at]
        elif how == 5:
            rows.insert(draw.randrange(len(rows)), list(rows[at]))
        elif how == 6:
            other = draw.randrange(len(rows))
            rows[at], rows[other] = rows[other], rows[at]
        elif how == 7:
            rows[at].insert(column, draw.choice(FIELDS))
        elif how == 8 and len(rows) > 4:
            del rows[at : at + draw.randrange(1, len(rows))]
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


HOSTILE = (
    "{{ 9 ** 9 ** 9 }}", "{{ 'x' * 10**10 }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ '%2000000000d' % 1 }}", "{{ 'x'.center(10**10) }}", "{{ '1'.zfill(10**10) }}",
    "{{ 1.5 | round(10**9, 'ceil') }}", "{{ ('x' ~ 'y') | indent(10**9) }}", "{{ [1] * 10**10 }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}", "{{ cycler.__init__ }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ lipsum(10**7) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[99].content }}", "{{ 1 / 0 }}",
    "{% for a in 'xx' %}" * 25 + "{% endfor %}" * 25, "{{ " + "1" * 5000 + " }}", "{{ '\\ud800' }}",
    "{{ raise_exception('no') }}", "{% generation %}x{% endgeneration %}", "{{ tools }}", "{{ '",
    "{{ '" + "a" * 50 + "' | replace('', 'a' * 10**6) | replace('', 'b' * 10**6) }}",
)  # fmt: skip


def any_template(draw: random.Random, raw: bytes) -> bytes:
    """A template with a hostile piece, or with any bytes changed."""
    if draw.random() < 0.4:
        return any_bytes(draw, raw)
    at = draw.choice((0, len(raw), draw.randrange(len(raw))))
    return raw[:at] + draw.choice(HOSTILE).encode() + raw[at:]


def by_ending(draw: random.Random, raw: bytes) -> bytes:
    """JSON where it is JSON, bytes elsewhere."""
    try:
        json.loads(raw)
    except ValueError:
        return any_bytes(draw, raw)
    return any_json(draw, raw)


def header_of_tensors(draw: random.Random, raw: bytes) -> bytes:
    """A safetensors file with another header, of the right length; or with any bytes changed."""
    if draw.random() < 0.3:
        return any_bytes(draw, raw)
    length = int.from_bytes(raw[:8], "little")
    header = any_json(draw, raw[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def binary_head(draw: random.Random, raw: bytes) -> bytes:
    """Mostly the first bytes of a file changed: any way, or a number there made a strange one."""
    how, size = draw.random(), min(3000, len(raw))
    if how < 0.1:
        return any_bytes(draw, raw)
    if how < 0.5:
        return any_bytes(draw, raw[:size]) + raw[size:]
    at, width = draw.randrange(size), draw.choice((4, 8))
    number = draw.choice((0, 1, 2, 7, 255, 2**20, 2**31, 2**32 - 1, 2**40, 2**62, 2**64 - 1))
    return raw[:at] + (number % 2 ** (8 * width)).to_bytes(width, "little") + raw[at + width :]
