"""CONTRIBUTING's table "to add X, edit Y" names what there is, and `make` runs what it says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import pangu_jax

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE = TEXT.split("## To add X, edit Y")[1].split("\n## ")[0]
INNER = {"config.py", "run.py", "report.py"}  # of an experiment
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| a")]


def place(path):
    """A path of the table, in the repository or the package; <kind> stands for any name."""
    pattern = re.sub(r"<\w+>", "*", path.rstrip("/"))
    return [*ROOT.glob(pattern), *(ROOT / "pangu_jax").glob(pattern)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_what_there_is(row):
    named = re.findall(r"`([^`]+)`", " ".join(row[1:]))
    paths = [name for name in named if "/" in name or name.endswith((".py", ".md", ".yml"))]
    files = [file for path in paths for file in place(path)]
    missing = [path for path in paths if path not in INNER and not place(path)]
    assert not missing
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    words = [name for name in named if re.fullmatch(r"_*[A-Za-z]\w*", name)]
    assert [word for word in words if not re.search(rf"\b{word}\b", text)] == []


def test_the_table_is_there():
    assert len(ROWS) > 15 and all(len(row) >= 2 for row in ROWS)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["test", "long", "slow", "parity"], ids="make {}".format)
def test_every_target_runs_one_file_alone(target):
    def commands(arguments):
        command = ["make", "--dry-run", target, f"PYTEST={arguments}"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        made = subprocess.run(command, cwd=ROOT, env=clean, check=True, capture_output=True)
        _, _, found = made.stdout.decode().partition("-m pytest")
        return found

    for one in ("tests/ops/test_routing.py", "-x tests/ops/test_routing.py::test_a"):
        assert one in commands(one) and "grep" not in commands(one)
    for other in ("-k routing", "--ignore=tests/ops"):
        assert other in commands(other)
        assert ("grep" in commands(other)) == (target == "parity")


def test_a_citation_has_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pangu_jax.__version__}\n" in text
