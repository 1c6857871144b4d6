"""Training learns as much as it did: the smoke preset's held-out bits per byte over three seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "experiments" / "pangu_pro_moe"
# In a process of its own: experiments name their modules config and run.
CODE = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import run
from config import PRESETS
experiment = PRESETS["smoke"]
text = run._read(experiment, "bytes")
model = run._models(experiment, text.tokenizer)["moge"]
found = []
for seed in range(3):
    with tempfile.TemporaryDirectory() as folder:
        found.append(run._cell(experiment, model, text, Path(folder), seed)["bits_per_byte"])
print(json.dumps(found))
"""
# Seeds 0, 1, 2 gave 4.398, 4.417 and 4.390 on the library of Python 3.11; knowing nothing is 8.
WANT, TOLERANCE = 4.40, 0.1


@pytest.mark.slow
def test_the_smoke_preset_reaches_its_bits_per_byte_with_every_seed():
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(PLACE)], capture_output=True, text=True, timeout=1200
    )
    assert found.returncode == 0, found.stderr[-2000:]
    scores = json.loads(found.stdout.splitlines()[-1])
    assert sum(scores) / 3 == pytest.approx(WANT, abs=TOLERANCE), scores
    assert max(scores) - min(scores) < 2 * TOLERANCE, scores
