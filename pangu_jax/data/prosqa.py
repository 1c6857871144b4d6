"""ProsQA: questions which of two properties follows from one of two roots of a graph.

    Every gerpus is a terpus. ... Bob is a yerpus. ... Is Sally a hilpus or sterpus?

and in symbols, three words per edge, a step of the chain one word. Nodes are numbers there, of
which no edge leads to a smaller one, as the indices of the published questions are:

    6 7 ; ... 0 14 ; ... 25 22 ? 1

Questions are drawn so that their statistics are those of the published test questions: the number
of nodes and edges, of parents, and of steps. Training questions themselves are not published in a
form that can be copied; how they were drawn is not known beyond these statistics.

Source: arXiv 2412.06769, section 4 and appendix A; symbols as in arXiv 2505.12514's released code.
"""

import dataclasses
import functools
import heapq
import multiprocessing
import operator
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.data.chain_of_thought import Problem

NAMES = (
    "Alex",
    "Bob",
    "Carol",
    "Davis",
    "Eva",
    "Fae",
    "Gabriel",
    "Jack",
    "Max",
    "Oliver",
    "Polly",
    "Rex",
    "Sally",
    "Sam",
    "Stella",
    "Tom",
    "Wren",
)
# What comes before "pus" in the names of properties.
STEMS = (
    "bom",
    "boom",
    "brim",
    "chor",
    "dum",
    "fel",
    "fom",
    "ger",
    "gor",
    "grim",
    "gwom",
    "hil",
    "im",
    "jel",
    "jom",
    "ker",
    "lem",
    "lor",
    "num",
    "quim",
    "rem",
    "rom",
    "ror",
    "scrom",
    "shum",
    "ster",
    "stor",
    "ter",
    "tim",
    "tum",
    "vum",
    "wor",
    "wum",
    "yer",
    "yim",
    "yum",
    "zhor",
    "zum",
)
# Facts and questions, as sentences and in symbols.
FORMS = (
    (re.compile(r"(\w+) is a (\w+)\."), re.compile(r"Is (?P<root>\w+) a (\w+) or (\w+)\?\s*$")),
    (re.compile(r"(\w+) (\w+) ;"), re.compile(r"(\w+) (\w+) \? (?P<root>\w+)\s*$")),
)
WORKER_DRAWS = 500  # problems that a process draws at a time
CONCEPTS = tuple(f"{stem}pus" for stem in STEMS)
# Shares of the published questions by the steps of the shortest path to the answer.
HOPS = {3: 0.407, 4: 0.438, 5: 0.131, 6: 0.024}


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph and the question about it.

    Attributes:
      parents: of each node, in the order of nodes, the earlier nodes that have edges to it.
      root: 0 or 1, the subject of the question.
      target: the node that follows from the root and from no other root.
      other: the node that follows from the other root and not from this one.
      path: the nodes of a shortest path from root to target, both among them.
    """

    parents: tuple[tuple[int, ...], ...]
    root: int
    target: int
    other: int
    path: tuple[int, ...]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """All (from, to)."""
        return [(parent, node) for node, found in enumerate(self.parents) for parent in found]


def draw_prosqa(
    count: int, *, seed: int = 0, workers: int = 1, in_symbols: bool = False
) -> list[Problem]:
    """Problems, of which the i-th is a function of the seed and i alone.

    Args:
      count: number of problems.
      seed: of the draws.
      workers: processes that draw, about 2 ms per problem; more than one begin with the caller's
        main module, as `multiprocessing` explains.
      in_symbols: whether they have the form of `symbols`.

    Raises:
      InputError: a number out of range.
    """
    check_size("count", count)
    check_size("workers", workers)
    if workers == 1 or count <= WORKER_DRAWS:
        return _draw(seed, in_symbols, range(count))
    parts = [range(n, min(n + WORKER_DRAWS, count)) for n in range(0, count, WORKER_DRAWS)]
    # Forked processes could inherit a lock that a thread of jax holds.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return [
            x for part in pool.map(functools.partial(_draw, seed, in_symbols), parts) for x in part
        ]


def _draw(seed: int, in_symbols: bool, numbers: range) -> list[Problem]:
    found = []
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        problem = write(draw_graph(rng), rng)
        found.append(symbols(problem) if in_symbols else problem)
    return found


def draw_graph(rng: np.random.Generator) -> Graph:
    """Draws a graph; the steps to the answer are distributed as in the published questions."""
    hops = int(rng.choice(list(HOPS), p=list(HOPS.values())))
    while True:
        parents, below = _draw_nodes(rng)
        has_children = {parent for found in parents for parent in found}
        sinks = [node for node in range(2, len(parents)) if node not in has_children]
        root = int(rng.integers(2))
        distance = _distances(parents, root)
        targets = [
            n
            for n in sinks
            if below[n] == 1 << root and len(_path(parents, distance, n)) == hops + 1
        ]
        others = [n for n in sinks if below[n] == 1 << (1 - root)]
        if targets and others:
            target, other = int(rng.choice(targets)), int(rng.choice(others))
            return Graph(parents, root, target, other, _path(parents, distance, target))


def write(graph: Graph, rng: np.random.Generator) -> Problem:
    """The question with names, its edges in any order, and the steps of a shortest path."""
    names, concepts = iter(rng.permutation(NAMES)), iter(rng.permutation(CONCEPTS))
    words = [str(next(concepts if found else names)) for found in graph.parents]

    def sentence(edge: tuple[int, int]) -> str:
        start, end = edge
        subject = f"Every {words[start]}" if graph.parents[start] else words[start]
        return f"{subject} is a {words[end]}."

    facts = rng.permutation([sentence(edge) for edge in graph.edges])
    choices = [words[graph.target], words[graph.other]]
    if rng.integers(2):
        choices.reverse()
    question = f"{' '.join(facts)} Is {words[graph.root]} a {choices[0]} or {choices[1]}?"
    steps = tuple(sentence(edge) for edge in zip(graph.path, graph.path[1:], strict=False))
    return Problem(question, steps, f"{words[graph.root]} is a {words[graph.target]}.")


def symbols(problem: Problem) -> Problem:
    """A problem in numbers: two and a mark per edge, one per step, one for the answer.

    Raises:
      InputError: it is not of the form of `write` and the published files.
    """
    fact, asked = FORMS[0]
    found, answer = asked.search(problem.question), fact.search(problem.answer)
    facts, steps = fact.findall(problem.question), [fact.findall(x) for x in problem.steps]
    if not found or not answer or not facts or any(len(step) != 1 for step in steps):
        raise InputError(f"no question of ProsQA: {problem.question!r:.80}")
    root, one, other = found.groups()
    number = _numbers([*facts, (root, one), (root, other)], facts)
    edges = " ".join(f"{number[start]} {number[end]} ;" for start, end in facts)
    chain = tuple(number[end] for ((_, end),) in steps)
    question = f"{edges} {number[one]} {number[other]} ? {number[root]}"
    return Problem(question, chain, number[answer.group(2)])


def larger(problem: Problem) -> str:
    """The larger of the two numbers that a question in symbols offers: later nodes are deeper."""
    one, other, *_ = problem.question.rsplit(maxsplit=4)[1:]
    return max(one, other, key=int)


def _numbers(named: list[tuple[str, str]], edges: list[tuple[str, str]]) -> dict[str, str]:
    """Numbers of names, counted along the edges: of all that may come next, the one named first."""
    names = list(dict.fromkeys(name for pair in named for name in pair))
    place = {name: i for i, name in enumerate(names)}
    below, above = [[] for _ in names], [0] * len(names)
    for start, end in edges:
        below[place[start]].append(place[end])
        above[place[end]] += 1
    free = [i for i, parents in enumerate(above) if not parents]  # a heap, as it is sorted
    found = {}
    while free:
        start = heapq.heappop(free)
        found[names[start]] = str(len(found))
        for end in below[start]:
            above[end] -= 1
            if not above[end]:
                heapq.heappush(free, end)
    if len(found) < len(names):
        raise InputError("a question of ProsQA goes in a circle: it has no order of its nodes")
    return found


def by_distance(question: str) -> tuple[list[set[str]], set[str]] | None:
    """The nodes of a question by their steps from the one that is asked about.

    Args:
      question: in the form of `write` and the published files, or in symbols.

    Returns:
      The words one step away, two steps away, and so on; and those that are not reached. None for
      a question of another form.
    """
    forms = ((fact.findall(question), asked.search(question)) for fact, asked in FORMS)
    edges, asked = next((form for form in forms if all(form)), (None, None))
    if edges is None or asked is None:
        return None
    known, found = {asked["root"]}, []
    while True:
        new = {end for start, end in edges if start in known} - known
        if not new:
            break
        found.append(new)
        known |= new
    return found, {word for edge in edges for word in edge} - known


def _draw_nodes(rng: np.random.Generator) -> tuple[tuple[tuple[int, ...], ...], list[int]]:
    """Each node's parents, and from which of the two roots it follows, as two bits.

    A node's parents are drawn, deep ones more often, from those that follow from no other root than
    the first, or the second, or from all.
    """
    count = int(np.clip(round(rng.normal(22.8, 2.0)), 14, 28))
    parents: list[tuple[int, ...]] = [(), ()]
    below, depth = [1, 2], [0, 0]
    # Drawn at once: a call of numpy takes longer than all that is done with a number.
    wanted = _at_least_one(rng, count) * (rng.random(count) >= 0.03)
    sides, keys = rng.random(count).tolist(), rng.exponential(size=(count, count)).tolist()
    for node in range(2, count):
        side = sides[node]
        hidden = 2 if side <= 0.35 else 1 if side <= 0.70 else 0
        pool = [n for n in range(node) if not below[n] & hidden]
        # The smallest of exponential draws over weights are a weighted draw without replacement.
        pool.sort(key=lambda n, drawn=keys[node]: drawn[n] / (1 + 1.5 * depth[n]))
        found = tuple(pool[: wanted[node]])
        parents.append(found)
        below.append(functools.reduce(operator.or_, (below[n] for n in found), 0))
        depth.append(max((1 + depth[n] for n in found), default=0))
    return tuple(parents), below


def _at_least_one(rng: np.random.Generator, count: int) -> np.ndarray:
    """Poisson draws of mean 1.5 that are not 0."""
    found = rng.poisson(1.5, count)
    while not found.all():
        found = np.where(found, found, rng.poisson(1.5, count))
    return found


def _distances(parents: tuple[tuple[int, ...], ...], root: int) -> dict[int, int]:
    """Steps from the root to each node that follows from it."""
    found = {root: 0}
    for node, above in enumerate(parents):  # parents come first
        known = [found[n] for n in above if n in found]
        if known:
            found[node] = 1 + min(known)
    return found


def _path(parents: tuple[tuple[int, ...], ...], distance: dict[int, int], end: int) -> tuple:
    path = [end]
    while distance[path[-1]]:
        step = distance[path[-1]] - 1
        path.append(next(n for n in parents[path[-1]] if distance.get(n) == step))
    return tuple(reversed(path))
