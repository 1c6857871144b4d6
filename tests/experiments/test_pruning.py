"""Experiments run where a machine has neither grain nor a command line library."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
CODE = """
import runpy, sys
for name in ("grain", "tyro", "tensorflow_datasets"):
    sys.modules[name] = None
script = sys.argv[1]
sys.path.insert(0, script.removesuffix("/run.py"))
sys.argv = [script, "--help"]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["slimllm", "pangu_light", "pangu_embedded"])
def test_it_starts_without_grain_and_tyro(name):
    script = FOLDER / name / "run.py"
    command = [sys.executable, "-c", CODE, script.as_posix()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
