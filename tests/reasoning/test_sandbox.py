"""Code that a model wrote: judged by what its functions return, and kept from all else."""

import functools
import importlib.util
import secrets
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning import sandbox
from pangu_jax.reasoning.code_tasks import humaneval, mbpp
from pangu_jax.reasoning.sandbox import Limits, run

_SPEC = importlib.util.spec_from_file_location("attacks", Path(__file__).with_name("attacks.py"))
attacks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(attacks)

SQUARE = "def answer(x):\n    print('x is', x)\n    return x * x\n"
CLASS = """
from collections import Counter, namedtuple
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
Both = namedtuple("Both", "a b")
LIMIT = 7
def total(pairs): return sum(pair.a for pair in pairs)
def swapped(pair): return Pair(pair.b, pair.a)
def values(): return [1, -(2**70), 0.1, 1j, b"x", "é\\ud800", (), {1}, {"a": None}, True]
def kinds(): return Counter("aa"), Both(1, 2)
def upto(n): yield from range(n)
def shout(text, *, times=1): raise ValueError(text * times)
"""
SEEN = """
assert total([Pair(2, 1), Pair(3, 1)]) == 5 and swapped(Pair(1, 2)).a == 2
assert values() == [1, -(2**70), 0.1, 1j, b"x", "é\\ud800", (), {1}, {"a": None}, True]
assert [type(x) for x in values()][:4] == [int, int, float, complex] and values()[-1] is True
assert kinds() == ({"a": 2}, (1, 2)) and list(upto(3)) == [0, 1, 2] and LIMIT == 7
try:
    shout("a", times=3)
except ValueError as error:
    assert str(error) == "aaa"
assert math.sqrt(4) == 2
"""


works = functools.cache(sandbox._works)


@pytest.fixture(params=["unshare", "bwrap"])
def _by(request, monkeypatch):
    """Each way of shutting in that there is on this system."""
    if not works(request.param):
        pytest.skip(f"this system lacks {request.param}, or does not permit it")
    monkeypatch.setattr(sandbox, "backend", lambda: request.param)


def judged(source, tests=("assert answer(3) == 9",), **options):
    return run(source, tests, **{"names": ("answer",), "allow": True, **options})


def hold(programs, test, tmp_path, monkeypatch):
    """Each scores nothing, in time, and leaves neither a process nor a file."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "empty"))
    # By its bound on memory a process of ours is known.
    limits = Limits(seconds=3, cpu_seconds=1, memory=2**30 + 4096 * secrets.randbelow(2**16))
    for program in programs:
        source = attacks.source(program.replace("/SECRET", str(tmp_path / "secret")))
        begin = time.monotonic()
        found = judged(source, [test], limits=limits)
        assert (found.passed, found.right) == (0, False), program
        assert time.monotonic() - begin < 30, program  # on a machine that is busy
        assert len(found.output) <= sandbox.SHOWN
        assert not [p for p in psutil.process_iter() if str(limits.memory) in _words(p)], program
        assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "secret"]
        assert not any((tmp_path / "empty").iterdir())


def _words(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kind_of(name):
    """The programs of one kind, and the test that they want to pass."""
    number = secrets.randbelow(10**12)
    wanted = "assert answer(3) is True" if name == "HARMS" else f"assert answer(3) == {number}"
    return getattr(attacks, name), wanted


def test_what_is_right_passes_and_says_what_it_printed(_by):
    found = judged(SQUARE, ("assert answer(3) == 9", "assert answer(2) == 5", "answer(1) + 'a'"))
    assert (found.passed, found.total, found.loaded, found.right) == (1, 3, True, False)
    assert found.error == "AssertionError"  # and not what was asked
    assert found.output == "x is 3\nx is 2\nx is 1\n"
    assert judged(SQUARE).right


def test_values_classes_and_errors_go_there_and_back(_by):
    names = ("Pair", "LIMIT", "total", "swapped", "values", "kinds", "upto", "shout")
    found = judged(CLASS, [SEEN], names=names)
    assert found.right, found


def test_a_harmless_answer_of_the_same_form_is_right(_by):
    """Else the programs below would score nothing for another reason."""
    body = (
        "import os, threading¶t = threading.Thread(target=int)¶t.start()¶open('f', 'w')¶return True"
    )
    assert judged(attacks.source(body), ["assert answer(3) is True"]).right


def test_helpers_of_the_tests_are_not_the_codes(_by):
    source = "def answer(x): return 1\ndef twice(x): return 2\nclass math: pi = 1\n"
    tests = (
        "assert twice(answer(3)) == 2",
        "import math\nassert math.pi == 1",
        "assert math.pi < 2",
    )
    assert judged(source, tests, setup="def twice(x): return 2 * x").passed == 1


def test_an_object_of_the_code_is_equal_to_nothing_and_neither_true_nor_false():
    source = """
class E:
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __len__(self): return 9
def answer(x): return E()
"""
    tests = ("{} == 9", "9 == {}", "{} != 8", "{}", "not {}", "{} in [9]", "len({}) == 9")
    tests = [f"assert {t.format('answer(3)')}" for t in tests]
    found = judged(source, [*tests, "assert answer(3) is not None"])
    assert (found.passed, found.total) == (1, 8)


def test_what_an_error_says_is_text_that_can_be_kept():
    assert judged("raise ValueError('a\\ud800')").error == "ValueError: a?"


@pytest.mark.parametrize(("name", "step"), [("FORGERIES", 13), ("HARMS", 13)])
def test_a_drawn_part_of_attacks_scores_nothing(_by, name, step, tmp_path, monkeypatch):
    programs, test = kind_of(name)
    hold(programs[::step], test, tmp_path, monkeypatch)


KILLED = """
import sys
from pangu_jax.reasoning import sandbox
sandbox.backend = lambda: sys.argv[1]
sandbox.run("def answer(x):\\n    import time; time.sleep(1000)", ["answer(3)"], names=["answer"],
            allow=True, limits=sandbox.Limits(seconds=1000, memory=int(sys.argv[2])))
"""


def test_nothing_outlives_whoever_runs_it(_by):
    memory = str(2**30 + 4096 * secrets.randbelow(2**16))
    command = [sys.executable, "-c", KILLED, sandbox.backend(), memory]
    with subprocess.Popen(command) as judge:
        for wanted in (True, False):
            end = time.monotonic() + 60
            while any(f'"AS": {memory}' in _words(p) for p in psutil.process_iter()) is not wanted:
                assert time.monotonic() < end, wanted
                time.sleep(0.05)
            time.sleep(0.5)  # until it is shut in
            judge.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FORGERIES", "HARMS", "WASTES"])
def test_attacks_score_nothing_end_in_time_and_leave_nothing(_by, name, tmp_path, monkeypatch):
    programs, test = kind_of(name)
    hold(programs, test, tmp_path, monkeypatch)
    assert sum(len(kind_of(kind)[0]) for kind in ("FORGERIES", "HARMS", "WASTES")) >= 150


@pytest.mark.slow
def test_references_of_humaneval_pass_and_empty_answers_do_not(_by, data_dir):
    tasks = humaneval(data_dir / "reasoning" / "humaneval.jsonl.gz")
    assert len(tasks) == 164
    for task in tasks:
        options = {"names": task.names, "setup": task.setup}
        assert judged(task.before + task.reference, task.tests, **options).right, task
        assert not judged(task.before + "    pass\n", task.tests, **options).right, task


@pytest.mark.slow
def test_references_of_mbpp_pass_but_the_one_that_lacks_a_name(_by, data_dir):
    tasks = mbpp(data_dir / "reasoning" / "mbpp_test.jsonl.gz")
    wrong = [t for t in tasks if not judged(t.reference, t.tests, names=t.names).right]
    assert len(tasks) == 500 and [t.tests[0] for t in wrong] == [
        "assert is_tree_balanced(root) == False"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": False}, "only where that is allowed: by --allow-code-execution"),
        ({"tests": ()}, "there is no test"),
        ({"tests": ("a b",)}, "the tests cannot be run: SyntaxError"),
        ({"setup": "def"}, "the tests cannot be run: SyntaxError"),
        ({"setup": "import nowhere"}, "the tests cannot be run: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        judged(SQUARE, **options)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/bin/false"], "before it ended"),
        (["/bin/sh", "-c", "sleep 9", "--"], "in time"),
        (["/nowhere"], "No such file"),
    ],
)
@pytest.mark.parametrize("part", ["candidate", "tester"])
def test_a_sandbox_that_cannot_start_says_nothing_of_the_code(command, message, part, monkeypatch):
    shut_in, wrong = sandbox._shut_in, []

    def _shut_in(name, limits):
        wrong.append(len(wrong) == ("candidate", "tester").index(part))
        return command if wrong[-1] else shut_in(name, limits)

    sandbox.backend()  # which tries both
    monkeypatch.setattr(sandbox, "_shut_in", _shut_in)
    with pytest.raises(InputError, match=f"cannot start a sandbox: .*{message}"):
        judged(SQUARE, limits=Limits(seconds=2))


def test_without_a_sandbox_nothing_is_run(monkeypatch):
    sandbox.backend.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    with pytest.raises(InputError, match="that takes Linux on x86_64 or aarch64, and either"):
        judged("raise SystemExit")
    sandbox.backend.cache_clear()
