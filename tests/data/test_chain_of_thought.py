"""Problems with worked steps: four forms of files, multiplications and graphs that are drawn."""

import dataclasses
import gzip
import json
from collections import Counter

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import prosqa
from pangu_jax.data.chain_of_thought import Problem, read_problems
from pangu_jax.data.multiplication import draw_multiplications, multiplication
from pangu_jax.data.prosqa import (
    CONCEPTS,
    HOPS,
    NAMES,
    by_distance,
    draw_graph,
    draw_prosqa,
    larger,
    symbols,
)


def lines(path):
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def written(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_four_forms_of_lines_are_read(tmp_path):
    found = read_problems(
        written(
            tmp_path,
            {"question": "q", "steps": ["a", "b"], "answer": "c"},
            {"question": "q", "cot": "<<1+1=2>> <<2*2=4>>", "answer": "4"},
            {"question": "1 * 2", "cot": "0 1 + 2 ( 3 ) + 4", "answer": "5"},
            {"question": "q", "cot": "One.\n\nTwo.", "answer": "2"},
            {"question": "q", "answer": "So 1+1 = <<1+1=2>>2 it is.\n#### 2"},
        )
    )
    assert [problem.steps for problem in found] == [
        ("a", "b"),
        ("<<1+1=2>>", "<<2*2=4>>"),
        ("0 1", "+ 2 ( 3 )", "+ 4"),
        ("One.", "Two."),
        ("<<1+1=2>>",),
    ]
    assert [problem.answer for problem in found] == ["c", "4", "5", "2", "2"]


@pytest.mark.parametrize(
    "record, why",
    [
        ({"question": "q", "answer": "4"}, "neither steps nor cot"),
        ({"question": "q", "steps": "a", "answer": "4"}, "a list of texts"),
        ({"question": "q", "cot": 3, "answer": "4"}, "cot must be a text"),
        ({"question": " ", "steps": [], "answer": "4"}, "an empty question"),
        ({"question": "q", "cot": "1", "answer": ""}, "an empty answer"),
        ({"question": "q", "answer": "So it is.\n#### "}, "an empty answer"),
    ],
)
def test_other_forms_are_refused_by_line(tmp_path, record, why):
    good = {"question": "q", "steps": [], "answer": "c"}
    with pytest.raises(InputError, match=rf"problems.jsonl line 2.*{why}"):
        read_problems(written(tmp_path, good, record))


def test_a_multiplication_is_written_digit_by_digit():
    assert multiplication(2967, 6361, 4) == Problem(
        "7 6 9 2 * 1 6 3 6",
        (
            "7 6 9 2 0",
            "+ 0 2 0 8 7 1 ( 7 8 9 0 8 1 )",
            "+ 0 0 1 0 9 8 0 ( 7 8 0 1 7 0 1 )",
            "+ 0 0 0 2 0 8 7 1",
        ),
        "7 8 0 3 7 8 8 1",
    )
    with pytest.raises(InputError, match="4 digits"):
        multiplication(10000, 1, 4)


def test_all_published_multiplications_are_written_byte_for_byte(data_dir):
    files = sorted((data_dir / "reasoning").glob("mult_*.jsonl.gz"))
    count = 0
    for path in files:
        digits = int(path.name.split("_")[1].split("x")[0])
        for record in lines(path):
            first, second = (
                int("".join(reversed(factor.split()))) for factor in record["question"].split("*")
            )
            problem = multiplication(first, second, digits)
            assert [problem.question, " ".join(problem.steps), problem.answer] == [
                record["question"],
                record["cot"],
                record["answer"],
            ]
            count += 1
        assert read_problems(path)[-1] == problem
    assert count == 10_000


def test_drawn_factors_have_all_digits_and_depend_on_the_seed():
    found = draw_multiplications(300, 2, seed=1)
    digits = [problem.question.split() for problem in found]
    assert {row[1] for row in digits} == {row[4] for row in digits} == set("123456789")
    assert {row[0] for row in digits} == set("0123456789")
    assert found == draw_multiplications(300, 2, seed=1) != draw_multiplications(300, 2, seed=2)


def parsed(problem):
    """The edges of a question by names, and its last sentence."""
    *facts, asked = problem.question.removesuffix("?").split(". ")
    edges = [fact.removeprefix("Every ").split(" is a ") for fact in facts]
    return [tuple(edge) for edge in edges], asked


def follows(edges, start):
    seen, left = {start}, [start]
    while left:
        here = left.pop()
        fresh = {end for begin, end in edges if begin == here} - seen
        seen |= fresh
        left += fresh
    return seen


def test_a_drawn_question_has_one_right_answer():
    for problem in draw_prosqa(60, seed=3):
        edges, asked = parsed(problem)
        who, rest = asked.removeprefix("Is ").split(" a ")
        choices = rest.split(" or ")
        right = problem.answer.removesuffix(".").split(" is a ")
        assert right[0] == who and right[1] in choices and choices[0] != choices[1]
        reached = follows(edges, who)
        assert [choice for choice in choices if choice in reached] == [right[1]]
        steps = [
            step.removeprefix("Every ").removesuffix(".").split(" is a ") for step in problem.steps
        ]
        assert all(tuple(step) in edges for step in steps)
        assert [step[0] for step in steps[1:]] == [step[1] for step in steps[:-1]]
        assert steps[0][0] == who and steps[-1][1] == right[1]
        assert not [edge for edge in edges if edge[0] in choices]  # both lead nowhere
        words = {word for edge in edges for word in edge}
        without = words - {end for _, end in edges}
        assert without <= set(NAMES) and words - without <= set(CONCEPTS)
    assert draw_prosqa(2, seed=3) == draw_prosqa(60, seed=3)[:2] != draw_prosqa(2, seed=4)


def test_several_processes_draw_the_same_problems(monkeypatch):
    monkeypatch.setattr(prosqa, "WORKER_DRAWS", 3)
    assert draw_prosqa(7, seed=3, workers=2) == draw_prosqa(7, seed=3)


def test_a_question_in_symbols_says_the_same():
    made = draw_prosqa(20, seed=5)
    assert draw_prosqa(20, seed=5, in_symbols=True) == list(map(symbols, made))
    for problem in made:
        short, edges = symbols(problem), parsed(problem)[0]
        *known, asked = short.question.split(" ; ")
        # Which number stands for which name: edges come in the same order.
        name = {
            number: word
            for edge, words in zip(known, edges, strict=True)
            for number, word in zip(edge.split(), words, strict=True)
        }
        assert sorted(map(int, name)) == list(range(len(name))) and len(name) == len(
            {word for words in edges for word in words}
        )
        assert all(int(start) < int(end) for start, end in (edge.split() for edge in known))
        one, other, mark, who = asked.split()
        end = f"Is {name[who]} a {name[one]} or {name[other]}?"
        assert problem.question.endswith(end) and mark == "?"
        assert f"{name[who]} is a {name[short.answer]}." == problem.answer
        assert short.steps[-1] == short.answer
        written = [step.removeprefix("Every ") for step in problem.steps]
        chain = zip((who, *short.steps), short.steps, strict=False)
        assert [f"{name[start]} is a {name[end]}." for start, end in chain] == written
        steps, rest = by_distance(short.question)
        back = [{name[number] for number in found} for found in (*steps, rest)]
        steps, rest = by_distance(problem.question)
        assert back == [*steps, rest]
        assert larger(short) == str(max(int(one), int(other)))
    with pytest.raises(InputError, match=r"no question of ProsQA: 'Is it'"):
        symbols(dataclasses.replace(problem, question="Is it"))
    circle = "A is a bpus. Every bpus is a cpus. Every cpus is a bpus. Is A a bpus or cpus?"
    with pytest.raises(InputError, match="goes in a circle"):
        symbols(Problem(circle, (), "A is a bpus."))


def statistics(nodes, edges, parents, hops):
    degrees, total = Counter(parents), len(parents)
    shares = {number: degrees[number] / total for number in range(4)}
    steps = Counter(hops)
    return np.mean(nodes), np.mean(edges), shares, {n: steps[n] / len(hops) for n in HOPS}


def test_drawn_graphs_are_as_the_published_ones(data_dir):
    drawn = [draw_graph(np.random.default_rng((5, i))) for i in range(400)]
    ours = statistics(
        [len(graph.parents) for graph in drawn],
        [len(graph.edges) for graph in drawn],
        [len(found) for graph in drawn for found in graph.parents],
        [len(graph.path) - 1 for graph in drawn],
    )
    rows = [
        row
        for part in ("valid", "test")
        for row in lines(data_dir / "reasoning" / f"prosqa_{part}.jsonl.gz")
    ]
    into = [
        Counter(end for _, end in row["edges"])[node]
        for row in rows
        for node in range(len(row["idx_to_symbol"]))
    ]
    theirs = statistics(
        [len(row["idx_to_symbol"]) for row in rows],
        [len(row["edges"]) for row in rows],
        into,
        [len(row["steps"]) for row in rows],
    )
    assert abs(ours[0] - theirs[0]) < 0.6 and abs(ours[1] - theirs[1]) < 1.2
    assert max(abs(ours[2][n] - theirs[2][n]) for n in range(4)) < 0.02
    assert max(abs(ours[3][n] - theirs[3][n]) for n in HOPS) < 0.08
    assert {word for row in rows for word in row["idx_to_symbol"]} <= {*NAMES, *CONCEPTS}
