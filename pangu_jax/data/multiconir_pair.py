"""Training pairs for retrieval by many conditions, made by rule from records of facts.

A query asks for one to ten of a record's facts, in any order. Its document says all of the record's
facts; a hard negative is the same document, word for word, in which some of the conditions that
are asked for have other values of their kind. No document of a batch answers another's query.

No wording is one of the data sets that are tested on here.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.data.multiconir_fact import Fact, Record

# kind -> how documents say it, and how queries ask for it
WORDING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "year": (
        ("This is a film from {v}.", "Audiences first saw it in {v}.", "Year: {v}."),
        ("from {v}", "made in {v}", "the year is {v}"),
    ),
    "genre": (
        ("Its genre is {v}.", "A typical {v} film.", "Shops keep it on the {v} shelf."),
        ("of the genre {v}", "a {v} film", "it counts as {v}"),
    ),
    "director": (
        ("It is a film by {v}.", "{v} was behind the camera.", "Direction: {v}."),
        ("by the director {v}", "with {v} as director", "{v} directs"),
    ),
    "writer": (
        ("{v} is credited with the story.", "The words are by {v}.", "Writing: {v}."),
        ("from the pen of {v}", "with a script by {v}", "{v} is the writer"),
    ),
    "cast": (
        ("{v} plays a part.", "Among the players is {v}.", "Starring {v}."),
        ("starring {v}", "with {v} among the players", "{v} plays a part in it"),
    ),
    "title_len": (
        ("Words in its title: {v}.", "It is known by a name of {v} word(s).", "Title length {v}."),
        ("with {v} word(s) in its title", "the name counts {v} word(s)", "title length {v}"),
    ),
}
HEADS = ("Find a film: {}.", "I look for a film that is as follows: {}.", "Which film is it? {}.")
JOINS: tuple[Callable[[Sequence[str]], str], ...] = (
    lambda asked: "; ".join(f"{i}. {text}" for i, text in enumerate(asked, 1)),
    lambda asked: ", ".join(asked),
    lambda asked: ", and ".join(asked),
)
TRIES = 100


@dataclasses.dataclass(frozen=True)
class Pair:
    """One query, and documents.

    Attributes:
      query: asks for some facts.
      positive: the document that has them all.
      negatives: the same document with some of the facts that are asked for changed.
      asked: the facts that the query asks for.
      facts: those of the positive.
      broken: those of each negative.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    asked: frozenset[Fact]
    facts: frozenset[Fact]
    broken: tuple[frozenset[Fact], ...]


def check_records(records: Sequence[Record], rows: int) -> None:
    """Checks that batches can be made from the records.

    Raises:
      InputError: there are fewer than a batch has rows, or one has a kind of unknown wording.
    """
    check_size("batch", rows, least=2)
    if len(records) < rows:
        raise InputError(f"a batch of {rows} needs as many records, there are {len(records)}")
    for record in records:
        for kind, _ in record.facts:
            if kind not in WORDING:
                raise InputError(
                    f"the record {record.id!r} has a fact of the kind {kind!r}; known are "
                    f"{', '.join(WORDING)}"
                )


def told_apart(records: Sequence[Record]) -> list[Record]:
    """The records that alone answer some query; of equal ones the first.

    A record all of whose facts another one has, too, answers no query better than that one does.
    """
    holders: dict[Fact, set[int]] = {}
    for number, record in enumerate(records):
        for fact in record.facts:
            holders.setdefault(fact, set()).add(number)
    kept = []
    for number, record in enumerate(records):
        others = set.intersection(*(holders[fact] for fact in record.facts)) - {number}
        equal = {n for n in others if set(records[n].facts) == set(record.facts)}
        if others == equal and all(number < n for n in equal):
            kept.append(record)
    return kept


def values_by_kind(records: Sequence[Record]) -> dict[str, list[str]]:
    """All values of each kind, from which broken conditions are drawn."""
    found: dict[str, set[str]] = {}
    for record in records:
        for kind, value in record.facts:
            found.setdefault(kind, set()).add(value)
    return {kind: sorted(values) for kind, values in found.items()}


def draw_pairs(
    records: Sequence[Record],
    values: dict[str, list[str]],
    *,
    rows: int,
    negatives: int,
    draw: np.random.Generator,
) -> list[Pair]:
    """The pairs of one batch, of different records.

    A query asks for one to all of its record's facts, and for more where the facts of another
    document of the batch would answer it. Half of the negatives break one condition, the others
    any number of them.

    Args:
      records: see `check_records`.
      values: see `values_by_kind`.
      rows: pairs of the batch.
      negatives: hard negatives of each.
      draw: source of randomness.

    Raises:
      InputError: two records have the same facts, or a kind has too few values.
    """
    chosen = [records[int(i)] for i in draw.permutation(len(records))[:rows]]
    orders = [[record.facts[i] for i in draw.permutation(len(record.facts))] for record in chosen]
    held = [frozenset(record.facts) for record in chosen]
    asked = []
    for row, order in enumerate(orders):
        size = int(draw.integers(1, len(order) + 1))
        others = held[:row] + held[row + 1 :]
        while any(held_by.issuperset(order[:size]) for held_by in others):
            if size == len(order):
                raise InputError(f"another record has all facts of {chosen[row].id!r}")
            size += 1
        asked.append(frozenset(order[:size]))
    return [
        _pair(row, orders[row], asked, values, negatives=negatives, draw=draw)
        for row in range(rows)
    ]


def pair_batches(
    records: Sequence[Record],
    encode: Callable[[Sequence[str]], Any],
    *,
    batch: int,
    negatives: int,
    seed: int,
    shuffled: bool = False,
    start_step: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches for `train.contrastive.contrastive_loss`.

    Batch number i is a function of the seed and i alone.

    Args:
      records: see `check_records`.
      encode: maps texts to a tree of arrays, one row per text.
      batch: pairs.
      negatives: hard negatives of each; 0 for none.
      seed: of the draws.
      shuffled: whether each query gets the documents of another record, and its own are not in
        the batch, which is a control: such pairs say nothing about conditions.
      start_step: the first batch to give.

    Raises:
      InputError: see `check_records` and `draw_pairs`.
    """
    rows = 2 * batch if shuffled else batch
    check_records(records, rows)
    values, step = values_by_kind(records), start_step
    while True:
        draw = np.random.default_rng((seed, step))
        pairs = draw_pairs(records, values, rows=rows, negatives=negatives, draw=draw)
        answers = pairs[-batch:]
        found = {
            "queries": encode([pair.query for pair in pairs[:batch]]),
            "documents": encode([pair.positive for pair in answers]),
        }
        if negatives:
            hard = encode([text for pair in answers for text in pair.negatives])
            found["negatives"] = _grouped(hard, batch, negatives)
        yield found
        step += 1


def _grouped(tree: Any, rows: int, each: int) -> Any:
    if isinstance(tree, dict):
        return {name: _grouped(branch, rows, each) for name, branch in tree.items()}
    return tree.reshape(rows, each, *tree.shape[1:])


def _pair(
    row: int,
    order: list[Fact],
    asked: list[frozenset[Fact]],
    values: dict[str, list[str]],
    *,
    negatives: int,
    draw: np.random.Generator,
) -> Pair:
    own = [fact for fact in order if fact in asked[row]]
    others = asked[:row] + asked[row + 1 :]
    said = order if draw.random() < 0.5 else [order[i] for i in draw.permutation(len(order))]
    forms = draw.integers(0, 3, len(said)).tolist()
    broken = []
    for number in range(negatives):
        size = 1 if number % 2 == 0 else int(draw.integers(1, len(own) + 1))
        broken.append(_broken(said, own, size, others, values, draw))
    return Pair(
        _query(own, draw),
        _document(said, forms),
        tuple(_document(facts, forms) for facts in broken),
        asked[row],
        frozenset(order),
        tuple(map(frozenset, broken)),
    )


def _broken(
    said: list[Fact],
    own: list[Fact],
    size: int,
    others: list[frozenset[Fact]],
    values: dict[str, list[str]],
    draw: np.random.Generator,
) -> list[Fact]:
    """The facts with `size` of those asked for changed, so that they answer no other query."""
    held = {value for _, value in said}
    for _ in range(TRIES):
        hit = {own[i] for i in draw.permutation(len(own))[:size]}
        found = [(k, _other(k, held, values, draw)) if (k, v) in hit else (k, v) for k, v in said]
        has = frozenset(found)
        if not any(query <= has for query in others):
            return found
    raise InputError(f"the record with {said[0]} has no negative that answers no other query")


def _other(
    kind: str, held: set[str], values: dict[str, list[str]], draw: np.random.Generator
) -> str:
    known = values[kind]
    for _ in range(TRIES):
        value = known[int(draw.integers(len(known)))]
        if value not in held:
            return value
    raise InputError(f"the kind {kind!r} has too few values to break a condition with")


def _document(facts: Sequence[Fact], forms: Sequence[int]) -> str:
    return " ".join(
        WORDING[kind][0][form].format(v=value)
        for (kind, value), form in zip(facts, forms, strict=True)
    )


def _query(asked: Sequence[Fact], draw: np.random.Generator) -> str:
    forms = draw.integers(0, 3, len(asked)).tolist()
    said = [WORDING[k][1][form].format(v=v) for (k, v), form in zip(asked, forms, strict=True)]
    head, join = draw.integers(0, 3, 2).tolist()
    return HEADS[head].format(JOINS[join](said))
