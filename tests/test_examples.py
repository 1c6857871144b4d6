"""Every script of examples/ runs as its first lines say, and prints what it is about."""

import re
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTS = {
    "train": r"\[' brown fox jumps over",
    "generate": r"temperature 0: the quick\| brown fox jumps",
    "embed": r"'quick fox': 'a quick brown fox' \(0\.\d+\)",
    "serve": r"' brown fox jumps ove', 20 tokens\nthe server ended with 0",
    "rl": r"before: [1-3]\d% of .*\nafter 12 updates: ([6-9]\d|100)%",
    "distill": r"teacher: (0\.\d+) bits per byte\nstudent: 0\.\d+ bits",
    "export": r"programs: prefill_16 decode\nnext: 'o'",
    "forecast": r"2024-01-11 03:00.* demand .*\nmean squared error (0\.\d+), of repeating 0\.\d+",
    "prune": r"dense: 70,848 parameters, 0\.\d+ bits.*\npruned: 58,752 parameters, [01]\.\d+ bits",
    "bench": r"4\+2 = '6': right(.|\n)*\d\d% right, 95 % interval",
    "latent": r"its own for thoughts: ([7-9]\d|100)% .*\nzeros for thoughts: \d+% ",
    "merge": r"merged +bits per byte: fox 0\.\d\d pack 0\.\d\d",
    "custom_loss": r"loss \d\.\d\d, \d\d+% of the next bytes are right",
    "flax_block": r"Linen: loss .*\nNNX: \(2, 8, 64\)",
}
# Those that open what another leaves run after it; the others stand alone.
CHAINS = [("train", "generate", "embed", "export", "serve", "rl", "distill")]
CHAINS += [(name,) for name in PRINTS if not any(name in chain for chain in CHAINS)]


def test_no_script_is_forgotten():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text()))
    assert scripts == listed == set(PRINTS)


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_it_runs(chain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in chain:
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert re.search(PRINTS[name], capsys.readouterr().out)
