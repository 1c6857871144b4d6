"""Experiments start where a machine has neither grain nor a command line library."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_jax.core.config import to_json

FOLDER = Path(__file__).parents[2] / "experiments"
NAMES = (
    *("latent_cot", "multiconir", "pangu_embedded", "pangu_light", "pangu_pro_moe", "slimllm"),
    "timepro",
)
# As scripts: the folder of each stands first in the path, as Python puts it there.
CODE = """
import runpy, sys
for name in ("grain", "tyro", "tensorflow_datasets"):
    sys.modules[name] = None
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    before = list(sys.path)
    sys.path.insert(0, script.removesuffix("/run.py"))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    sys.path.pop(0)
    assert sys.path == before, "an experiment changed sys.path"
"""


@pytest.mark.long
def test_each_starts_without_grain_and_tyro():
    scripts = [str(FOLDER / name / "run.py") for name in NAMES]
    done = subprocess.run([sys.executable, "-c", CODE, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--preset", "--data", "--out"):
        assert done.stdout.count(f"  {option} ") == len(NAMES), done.stdout
    assert done.stdout.count("  --checkpoint ") == 3
    assert done.stdout.count("  --workers ") == 5


LANGUAGE = (
    "model data held_out steps batch length optimizer recover_steps recover_rate dtype unroll"
)
SETTINGS = {
    "latent_cot": "plans seeds timed dtype tokens",
    "pangu_embedded": "questions held_out seeds judged max_new_tokens batch steps decay dtype",
    "multiconir": "steps batch accumulate negatives length temperature tuning seeds rows "
    "measured_batch orders poolings decoder_poolings causal_poolings causal causal_steps "
    "causal_training dtype",
    "slimllm": f"{LANGUAGE} targets methods draws windows window_length eval_windows eval_lengths "
    "recover recover_draws latency",
    "pangu_light": f"{LANGUAGE} targets starts seeds windows eval_windows max_rel_err",
    "pangu_pro_moe": "model data held_out steps batch length optimizer aux_weight seeds dtype "
    "remat evaluate_bytes routing_tokens devices batch_sizes prompt",
    "timepro": "cells seeds epochs windows",
}


@pytest.mark.parametrize("name", NAMES)
def test_run_folders_of_before_go_on(name):
    """Settings of another name would refuse every folder that was begun before."""
    presets = importlib.import_module(f"experiments.{name}.config").PRESETS
    assert {"smoke", "cpu", "gpu", "paper"} <= set(presets)
    assert sorted(to_json(presets["smoke"])) == sorted(SETTINGS[name].split())
