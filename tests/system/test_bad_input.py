"""Every bad input ends in one sentence that names what is wrong, and leaves nothing behind."""

import contextlib
import importlib.util
import io
import json
import os
import re
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pangu_jax.checkpoint import hf, store
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError


def _load():
    path = Path(__file__).with_name("bad_input.py")
    spec = importlib.util.spec_from_file_location("bad_input", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bad_input = _load()
MESSAGES: dict[str, list[str]] = {}
# What a sentence for a user does not hold.
UGLY = r"Traceback|Error\(|<class|<bound|object at 0x|\bNone\b|InputError|self\."

PICKLES = []
sys.addaudithook(lambda event, _: PICKLES.append(event) if event == "pickle.find_class" else None)


class Maker(bad_input.Maker):
    def __init__(self, root, run):
        super().__init__(root)
        self.run = run

    def copy_of_run(self, files):
        folder = self.root / f"run{self.count}"
        self.count += 1
        self.recent.append(folder)
        shutil.copytree(self.run, folder)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    def reads_the_same(self, folder):
        """Whether the parameters are those of the sound run; never whether they differ."""
        try:
            found, _ = store.restore_params(folder)
        except InputError:
            return False
        same = jax.tree.map(np.array_equal, found, store.restore_params(self.run)[0])
        assert all(jax.tree.leaves(same)), f"{folder} gives other parameters in silence"
        return True


@pytest.fixture(scope="module")
def make(tiny_run, tmp_path_factory):
    return Maker(tmp_path_factory.mktemp("cases"), tiny_run)


def call(arguments):
    """Exit status and what went to stderr."""
    out, err = io.StringIO(), io.StringIO()
    quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with quiet[0], quiet[1], pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, err.getvalue()


def files(folders):
    return {p for folder in folders for p in folder.rglob("*") if p.is_file()}


@pytest.mark.long(but=10)
@pytest.mark.parametrize("kind", bad_input.KINDS)
def test_bad_input_ends_in_one_sentence(kind, make):
    for arguments, words in bad_input.KINDS[kind](make):
        before, begin = files(make.recent), time.monotonic()
        PICKLES.clear()  # other tests may start processes, which send pickles
        status, err = call(arguments)
        where = f"{arguments}: {err}"
        assert status == 2, where
        sentence = err.removeprefix("pangu-jax: ").strip()
        MESSAGES.setdefault(kind, []).append(sentence)
        assert err.count("\n") == 1 and err.startswith("pangu-jax: "), where
        assert re.search(words, sentence), f"{words!r} is not in {sentence!r}"
        assert not re.search(UGLY, sentence), where
        assert 15 < len(sentence) < 700, where
        assert time.monotonic() - begin < 30, where
        made = files(make.recent) - before
        assert not made, f"{arguments} left {made}"
        assert not PICKLES, where
        make.recent.clear()


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_write_limit_hit_half_way_leaves_nothing(make, tmp_path):
    params, cfg = hf.load(bad_input.LLAMA)
    for size in (0, 1, 100, 700, 5000, 20_000, 60_000):
        out = tmp_path / "out"
        try:
            limit_files(size)
            with pytest.raises(InputError) as found:
                hf.save(params, cfg, out, family="llama")
        finally:
            limit_files(resource.RLIM_INFINITY)
        MESSAGES.setdefault("write_limit", []).append(str(found.value))
        assert str(out) in str(found.value) and not list(tmp_path.iterdir())
    for size in (0, 10, 200):
        out = make.folder() / "run"
        text = make.text("some text " * 50)
        arguments = ["train", "--data", str(text), "--out", str(out), "--held-out", "0"]
        try:
            limit_files(size)
            status, err = call(arguments)
        finally:
            limit_files(resource.RLIM_INFINITY)
        MESSAGES["write_limit"].append(err.strip())
        assert status == 2 and "cannot write" in err and err.count("\n") == 1
        assert not [p for p in out.rglob("*") if p.is_file()]


def test_there_are_many_kinds_and_cases(make):
    """Counted anew, as the tests above may be spread over processes."""
    counts = {kind: sum(1 for _ in cases(make)) for kind, cases in bad_input.KINDS.items()}
    make.recent.clear()
    assert len(counts) >= 25 and all(counts.values())
    assert sum(counts.values()) >= 650  # and those of test_fuzz.py


def test_messages_are_kept_where_asked():
    """Those of this process; runs last."""
    path = os.environ.get("BAD_INPUT_MESSAGES")
    if path:
        Path(path).write_text(json.dumps(MESSAGES, indent=1))


def test_the_package_loads_no_pickle():
    root = Path(__file__).parents[2] / "pangu_jax"
    for file in root.rglob("*.py"):
        text = file.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|cloudpickle|joblib)\b", text, re.M), (
            file
        )
        assert "allow_pickle=True" not in text and "torch.load" not in text, file
