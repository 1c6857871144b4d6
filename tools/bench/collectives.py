"""What a compiled program sends between devices, counted in its text."""

import re
from collections import Counter

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
# The result, the kind, and how many devices take part.
LINE = re.compile(
    r"= (?P<result>\(*[a-z0-9]+\[.*?) (?P<kind>all-gather|reduce-scatter|all-reduce|all-to-all)"
    r"(?P<start>-start)?\(.*?replica_groups=(?P<groups>\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+))"
)
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def received(program) -> Counter:
    """Bytes that a device receives, by the kind of collective; those in a loop count once.

    Of n devices each receives (n - 1) / n of what an all-gather gives or a reduce-scatter or
    all-to-all takes, and twice that of an all-reduce, as rings do it.

    Args:
      program: a compiled program.
    """
    found = Counter()
    for match in LINE.finditer(program.as_text()):
        kind = match["kind"]
        n = int(match["size"] or len(match["first"].split(",")))
        arrays = ARRAY.findall(match["result"])
        if match["start"] and kind != "all-reduce":  # what it takes stands beside what it gives
            arrays = [array for array in arrays if array[1]]  # without counters
            arrays = arrays[len(arrays) // 2 :]
        arrays = [_bytes(*array) for array in arrays]
        times = {"all-reduce": 2, "reduce-scatter": n}.get(kind, 1)
        found[kind] += round(sum(arrays) * times * (n - 1) / n)
    return found


def calls(program) -> Counter:
    """How many collectives of each kind a compiled program makes; those in a loop count once."""
    return Counter(match["kind"] for match in LINE.finditer(program.as_text()))


def _bytes(kind, shape):
    number = 1
    for size in shape.split(","):
        number *= int(size or 1)
    return number * SIZES[kind]
