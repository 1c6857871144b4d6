"""Training that is killed at random moments ends in the bits of a run that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "kill_training.py"


@pytest.mark.long
@pytest.mark.parametrize(
    ("subject", "kills", "inside", "steps"),
    [
        ("bigram", 3, 1, 16),
        pytest.param("bigram", 20, 5, 120, marks=pytest.mark.slow),
        pytest.param("forecaster", 20, 5, 120, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_when_training_is_killed(subject, kills, inside, steps, tmp_path):
    report = tmp_path / "report.json"
    options = [
        f"--subject={subject}",
        f"--kills={kills}",
        f"--inside={inside}",
        f"--steps={steps}",
        f"--seed={os.getpid()}",
    ]
    found = subprocess.run(
        [sys.executable, TOOL, "--out", report, *options],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    told = json.loads(report.read_text())
    assert told["kills"] == kills
    assert told["inside_a_save"] >= inside
    assert told["runs"] >= 1
