"""Mutants are told by whether the nearest tests notice them, and by nothing else."""

import argparse
import json
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
CODE = "def twice(x):\n    return x * 2\n"
GOOD = "from pangu_jax.ops import good\n\n\ndef test_twice():\n    assert good.twice(3) == 6\n"
WEAK = """from pangu_jax.ops import good
from pangu_jax.ops.weak import twice


def test_twice():
    assert good.twice(3) == 6  # a mutant that was left in the copy would show
    assert twice(2) == 4
"""


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of a small run's time
    import mutants

    return mutants


@pytest.fixture
def tree(tmp_path):
    """A library of two modules, each with a test file; one cannot tell a product from a sum."""
    for path, text in {
        "pyproject.toml": "[tool.pytest.ini_options]\n",
        "pangu_jax/__init__.py": "",
        "pangu_jax/ops/__init__.py": "",
        "pangu_jax/ops/good.py": CODE,
        "pangu_jax/ops/weak.py": CODE,
        "pangu_jax/ops/through.py": "from pangu_jax.ops import weak\n",
        "tests/ops/test_good.py": GOOD,
        "tests/ops/test_other.py": WEAK,
    }.items():
        place = tmp_path / "tree" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return tmp_path / "tree"


def mutant(mutants, name):
    changed = CODE.replace("*", "+")
    return mutants.Mutant(f"pangu_jax/ops/{name}.py", 2, 13, "Mul_Add", 0, CODE, changed)


def run(mutants, tree, out, ends=60.0, workers=1):
    head = dict(sample=2, seed=0, rooms=["ops"], files=3, code="c", operators="o", commit=None)
    options = argparse.Namespace(files=3, timeout=20, workers=workers)
    results = mutants.Results(out, head)
    drawn = [mutant(mutants, "good"), mutant(mutants, "weak")]
    return mutants.run(drawn, results, tree, options, time.monotonic() + ends)


def test_a_weak_test_lets_its_mutant_survive_and_what_is_done_is_not_run_again(
    mutants, tree, tmp_path, capsys
):
    out = tmp_path / "results.jsonl"
    assert run(mutants, tree, out, ends=0) == 0
    assert "2 of 2 mutants are left" in capsys.readouterr().out
    assert run(mutants, tree, out) == 0
    whole = out.read_bytes()
    found = {row["name"].split(":")[0]: row for row in map(json.loads, whole.splitlines()[1:])}
    good, weak = (found[f"pangu_jax/ops/{name}.py"] for name in ("good", "weak"))
    assert (good["status"], good["tests"]) == ("killed", ["tests/ops/test_good.py"])
    assert (weak["status"], weak["tests"]) == ("survived", ["tests/ops/test_other.py"])
    assert (weak["passed"], weak["skipped"]) == ([1], [0])
    assert (tree / "pangu_jax/ops/good.py").read_text() == CODE
    drawn = [mutant(mutants, "good"), mutant(mutants, "weak")]
    assert mutants.survivors(drawn, out) == drawn[1:]
    with pytest.raises(SystemExit, match=r"survived in .* and is not of this sample"):
        mutants.survivors(drawn[:1], out)

    judged = {("pangu_jax/ops/weak.py", "return x * 2", "return x + 2"): "nobody can tell"}
    records = mutants.read(out)[1]
    assert "in all: killed 1 of 2 mutants (50 %), 1 survived" in mutants.report(records, {})
    told = mutants.report(records, judged)
    assert "in all: killed 1 of 1 mutants (100 %), 1 equivalent besides" in told
    assert "  + return x + 2\n  equivalent: nobody can tell" in told

    out.write_bytes(whole[:-30])  # as if ended while it wrote: only that mutant is run again
    (done,) = mutants.read(out)[1]
    (tree / done["tests"][0]).write_text("assert False")
    assert run(mutants, tree, out) == 0
    assert {row["name"]: row["status"] for row in mutants.read(out)[1]} == {
        row["name"]: row["status"] for row in records
    }
    with pytest.raises(SystemExit, match="holds results of seed 0, not 1: name another file"):
        mutants.Results(out, {**mutants.read(out)[0], "seed": 1})


def test_tests_that_fail_without_a_mutation_count_for_no_mutant(mutants, tree, tmp_path, capsys):
    (tree / "tests/ops/test_good.py").write_text(GOOD.replace("6", "7"))
    (tree / "tests/ops/test_other.py").write_text(WEAK + "\n\nraise ValueError\n")
    out = tmp_path / "results.jsonl"
    assert run(mutants, tree, out, workers=2) == 1
    assert mutants.read(out)[1] == []
    told = capsys.readouterr().out
    assert "tests/ops/test_good.py fails without a mutation" in told
    assert "2 of 2 mutants are left" in told


def test_a_file_that_takes_too_long_is_ended_and_the_end_of_time_counts_for_nothing(mutants, tree):
    (tree / "tests/ops/test_good.py").write_text("import time\n\ntime.sleep(60)\n")
    late = mutants.Children(time.monotonic() + 60).run(tree, "tests/ops/test_good.py", 0.3)
    assert late.status is None
    case = mutants.Case(mutant(mutants, "good"), ["tests/ops/test_good.py"], [late])
    assert case.status == "timeout"
    ending = mutants.Children(time.monotonic() + 0.3)
    assert ending.run(tree, "tests/ops/test_good.py", 60) is None


def test_the_mirrored_test_file_comes_first_then_importers_then_those_of_importers(mutants, tree):
    (tree / "tests/ops/test_weak.py").write_text("")
    (tree / "tests/ops/test_far.py").write_text("from pangu_jax.ops.through import weak\n")
    nearest = mutants.NearestTests(tree).nearest
    wanted = [f"tests/ops/test_{name}.py" for name in ("weak", "other", "far")]
    assert nearest("pangu_jax/ops/weak.py", 3) == wanted
    assert nearest("pangu_jax/ops/weak.py", 1) == wanted[:1]


def test_annotations_and_messages_are_no_places(mutants, tree):
    pytest.importorskip("cosmic_ray")
    (tree / "pangu_jax/ops/good.py").write_text(
        "from typing import TYPE_CHECKING\n\n"
        '__all__ = ["f"] + []\n'
        "if TYPE_CHECKING:\n    import numpy\n\n\n"
        "@g(1)\n"
        "def f(x: int | None, *, y: a | b = 5) -> int | None:\n"
        '    """Not 1."""\n'
        "    z: dict[1, 2] = {**y}\n"
        "    if x < 7:\n"
        '        raise ValueError(f"{x - 1}")\n'
        "    return z, core.InputError(y + 1), f(1e30)\n"
    )
    mutants_of = mutants.sample(tree, ["ops"], 100, 0)
    found = sorted((m.line, m.column) for m in mutants_of if m.path.endswith("good.py"))
    assert found == [(8, 3), (9, 35), (12, 7), (12, 9), (12, 11)]
    assert [m.name for m in mutants_of] == [m.name for m in mutants.sample(tree, ["ops"], 100, 0)]
    assert len(mutants.sample(tree, ["ops"], 3, 0)) == 3
