"""Where the library can be mutated, and mutants drawn from there."""

import ast
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "pangu_jax"
ROOMS = ("ops", "losses", "nn", "pruning", "decode", "checkpoint", "train", "eval", "data")

# An operator turns into one of its own kind: `a << b` of floats, and `is` for `==`, would mostly
# be noticed, or be equivalent, for reasons that say nothing of the tests.
KINDS = (
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"BitOr", "BitAnd", "BitXor", "LShift", "RShift"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
)
# Without `@jax.jit` or a cache nothing but time changes, and without `@property` or `@dataclass`
# nothing works; the other two want names to be given.
LEFT_OUT = {"RemoveDecorator", "VariableReplacer", "VariableInserter"}
BARREN = {
    "name",
    "string",
    "newline",
    "endmarker",
    "fstring_start",
    "fstring_string",
    "fstring_end",
}
NOT_BINARY = {"parameters", "lambdef", "dictorsetmaker", "atom"}  # `*` and `/` alone, `{**x}`
BARREN_SIGNS = set("()[]{},.:;=")


@dataclass(frozen=True)
class Place:
    """A position in a file (line from 1, column from 0) and the mutations that start there."""

    path: str
    line: int
    column: int
    choices: tuple[tuple[str, int], ...]  # operator and occurrence, as cosmic-ray counts them


@dataclass(frozen=True)
class Mutant:
    """One mutation of one file, whose text it makes `after` of `before`."""

    path: str
    line: int
    column: int
    operator: str
    occurrence: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """What tells it from all other mutants of the same code."""
        return f"{self.path}:{self.line}:{self.column} {self.operator} {self.occurrence}"


def operators() -> dict[str, object]:
    """Those of cosmic-ray's operators whose mutants tests should notice, by name."""
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    return {name: provider[name]() for name in provider if _kept(name)}


def _kept(name: str) -> bool:
    family, *pair = name.split("_")
    if family == "ReplaceUnaryOperator":  # `-x`, `~x`, `not x` lose their sign only
        return pair[0] == "Delete"
    return family not in LEFT_OUT and (not pair or any(set(pair) <= kind for kind in KINDS))


def places(path: str, code: str, kept: dict) -> list[Place]:
    """All places of a file that can be mutated, in the order of the text."""
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = [node for node in ast_nodes(get_ast(code)) if not _barren(node)]
    found = defaultdict(list)
    for name, operator in kept.items():
        occurrence = 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if not _exempt(node):
                    found[start].append((name, occurrence))
                occurrence += 1
    return [Place(path, *start, tuple(found[start])) for start in sorted(found)]


def _barren(node) -> bool:
    """Whether no operator looks at a node, which saves most of the time."""
    return node.type in BARREN or (node.type == "operator" and node.value in BARREN_SIGNS)


def _exempt(node) -> bool:
    """Whether a node is of an annotation, an error's message, `__all__` or for type checkers."""
    while node.parent is not None:
        if _exempts(node) or node is _annotation(node.parent):
            return True
        node = node.parent
    return False


def _exempts(node) -> bool:
    if node.type in ("raise_stmt", "tfpdef"):
        return True
    if node.type == "operator" and node.parent.type in NOT_BINARY:
        return True
    if node.type == "atom_expr":  # an error that is made, here or for others to raise
        return any(
            before.get_code().strip().endswith("Error") and after.get_code().startswith("(")
            for before, after in zip(node.children, node.children[1:], strict=False)
        )
    if node.type == "expr_stmt":
        return node.children[0].get_code().strip() == "__all__"
    return node.type == "if_stmt" and node.children[1].get_code().strip().endswith("TYPE_CHECKING")


def _annotation(parent):
    if parent.type == "annassign":
        return parent.children[1]
    return parent.annotation if parent.type == "funcdef" else None


def mutate(place: Place, code: str, choice: tuple[str, int], kept: dict) -> Mutant | None:
    """The mutant of a choice; None where it would not compile, or be the same program."""
    from cosmic_ray.mutating import mutate_code

    name, occurrence = choice
    try:
        mutated = mutate_code(code, kept[name], occurrence)
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(mutated)
            compile(mutated, place.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, AttributeError):  # the last: `except (a.B, C)` is too much
        return None
    if ast.dump(tree) == ast.dump(ast.parse(code)):  # 1e30 + 1, for one
        return None
    return Mutant(place.path, place.line, place.column, name, occurrence, code, mutated)


def shares(counts: list[int], number: int) -> list[int]:
    """Splits a number in proportion to the counts, none above its count; largest remainders."""
    number = min(number, sum(counts))
    exact = [number * count / max(sum(counts), 1) for count in counts]
    order = sorted(range(len(counts)), key=lambda i: int(exact[i]) - exact[i])
    more = set(order[: number - sum(map(int, exact))])
    return [int(value) + (i in more) for i, value in enumerate(exact)]


def sample(tree: Path, rooms: list[str], number: int, seed: int) -> list[Mutant]:
    """Draws places, a room's share being its share of all places, and a mutation for each.

    A place counts once, however many mutations start there, so that an addition, which six others
    can replace, weighs no more than a number. What is drawn depends on the seed and on the code
    of these rooms only.
    """
    kept, draw, drawn = operators(), random.Random(seed), []
    codes = {}
    for room in rooms:
        for path in sorted((tree / PACKAGE / room).rglob("*.py")):
            codes[path.relative_to(tree).as_posix()] = path.read_text(encoding="utf-8")
    of_room = {room: [] for room in rooms}
    for path, code in codes.items():
        of_room[path.split("/")[1]] += places(path, code, kept)
    counts = [len(found) for found in of_room.values()]
    for found, share in zip(of_room.values(), shares(counts, number), strict=True):
        mutants = _mutants(found, codes, kept, draw)
        drawn += [mutant for _, mutant in zip(range(share), mutants, strict=False)]
    return drawn


def _mutants(found: list[Place], codes: dict, kept: dict, draw: random.Random) -> Iterator[Mutant]:
    """A mutant for each place that has one, in a drawn order."""
    for place in draw.sample(found, len(found)):
        for choice in draw.sample(place.choices, len(place.choices)):
            mutant = mutate(place, codes[place.path], choice, kept)
            if mutant:
                yield mutant
                break
