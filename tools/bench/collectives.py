"""What a compiled program sends between devices, counted in its text."""

import re
from collections import Counter

import jax

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
KINDS = "all-gather|reduce-scatter|all-reduce|all-to-all"
# The result, the kind, and who takes part.
LINE = re.compile(
    rf"= (?P<result>\(*[a-z0-9]+\[.*?) (?P<kind>{KINDS})(?P<start>-start)?\(.*?replica_groups="
    r"(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+)|mesh\[(?P<mesh>.*?)\].*?\{(?P<axes>.*?)\}"
    r"|(?P<all>\{\}))"
)
AXIS = re.compile(r"'(\w+)'(?::\(\d+\)|=)?(\d*)")  # of a mesh, or part of one
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def received(program) -> Counter:
    """Bytes that a device receives, by the kind of collective; those in a loop count once.

    Of n devices each receives (n - 1) / n of what an all-gather gives or a reduce-scatter or
    all-to-all takes, and twice that of an all-reduce, as rings do it.

    Args:
      program: a compiled program.

    Raises:
      ValueError: a collective in a form that is not known here.
    """
    found = Counter()
    for match in _matches(program.as_text()):
        kind, n = match["kind"], _devices(match)
        arrays = ARRAY.findall(match["result"])
        if match["start"] and kind != "all-reduce":  # what it takes stands beside what it gives
            arrays = [array for array in arrays if array[1]]  # without counters
            arrays = arrays[len(arrays) // 2 :]
        size = sum(_bytes(*array) for array in arrays)
        times = {"all-reduce": 2, "reduce-scatter": n}.get(kind, 1)
        found[kind] += round(size * times * (n - 1) / n)
    return found


def calls(program) -> Counter:
    """How many collectives of each kind a compiled program makes; those in a loop count once."""
    return Counter(match["kind"] for match in _matches(program.as_text()))


def _matches(text):
    """The collectives of a program's text."""
    for line in text.splitlines():
        if re.search(rf" (?:{KINDS})(?:-start)?\(", line):
            match = LINE.search(line)
            if match is None:
                raise ValueError(f"what does this collective send? {line.strip():.300}")
            yield match


def _devices(match):
    """How many take part: all, or by the groups' size, the first group, or the axes of a mesh."""
    if match["all"]:
        return jax.device_count()
    if match["mesh"] is None:
        return int(match["size"] or len(match["first"].split(",")))
    sizes = dict(AXIS.findall(match["mesh"]))
    number = 1
    for name, part in AXIS.findall(match["axes"]):
        number *= int(part or sizes[name])
    return number


def _bytes(kind, shape):
    number = 1
    for size in shape.split(","):
        number *= int(size or 1)
    return number * SIZES[kind]
