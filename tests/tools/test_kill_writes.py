"""A folder that is written over an older one is one of the two, whenever the writer is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "kill_writes.py"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "writers"), [(20, 1), (20, 2), pytest.param(1000, 3, marks=pytest.mark.slow)]
)
def test_no_kill_leaves_a_mix_of_two_versions(kills, writers, tmp_path):
    options = [f"--kills={kills}", f"--writers={writers}", f"--seed={os.getpid()}"]
    found = subprocess.run(
        [sys.executable, TOOL, *options],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("nothing lost") == 2
