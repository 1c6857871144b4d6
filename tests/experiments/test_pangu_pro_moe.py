"""The experiment as its user runs it: on their own text, stopped and gone on, with a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

RUN = Path(__file__).parents[2] / "experiments" / "pangu_pro_moe" / "run.py"


def run(*arguments, cwd):
    flags = os.environ["XLA_FLAGS"].split()  # one device, as a user has
    flags = " ".join(f for f in flags if "device_count" not in f)
    # What the first run compiles serves the second.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(cwd / "jax")}
    return subprocess.run(
        [sys.executable, RUN, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short smoke run on a .jsonl file; (folder, what it printed)."""
    place = tmp_path_factory.mktemp("experiment")
    text = "the quick brown fox jumps over the lazy dog and runs away from it"
    words = text.split()
    lines = [
        {"text": " ".join(words[(i * j) % len(words)] for j in range(1, 80))} for i in range(120)
    ]
    (place / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--preset", "smoke", "--data", "text.jsonl", "--steps", 6, "--out", "out"]
    return place, options, run(*options, cwd=place)


def test_it_ends_with_a_report_of_both_models_and_the_control(finished):
    place, _, done = finished
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "out/report.md is the report" in done.stderr
    report = (place / "out" / "report.md").read_text()
    for word in ("MoGE (grouped)", "ordinary top-k", "byte model (control)", "What it costs"):
        assert word in report
    results = json.loads((place / "out" / "results.json").read_text())
    for name in ("loss", "load", "imbalance"):
        assert f"plots/{name}.png" in report
        assert (place / "out" / "plots" / f"{name}.png").stat().st_size > 5000
    grouped, ordinary = results["moge-seed0"], results["topk-seed0"]
    assert grouped["parameters"] == ordinary["parameters"]
    assert grouped["active"] == ordinary["active"]
    scores = [b["score"] for layer in grouped["layers"] for b in layer["balance"]]
    assert scores and set(scores) == {0.0}
    assert max(b["score"] for layer in ordinary["layers"] for b in layer["balance"]) > 0.1


@pytest.mark.slow
def test_the_same_command_does_only_what_is_missing(finished):
    place, options, _ = finished
    path = place / "out" / "results.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in before.items() if k != "topk-seed0"}))
    done = run(*options, cwd=place)
    assert done.returncode == 0, done.stderr
    after = json.loads(path.read_text())
    assert after["moge-seed0"] == before["moge-seed0"]
    assert after["topk-seed0"]["bits_per_byte"] == before["topk-seed0"]["bits_per_byte"]


def test_other_settings_in_the_same_folder_are_one_sentence(finished):
    place, options, _ = finished
    done = run(*options[:-4], "--steps", 7, "--out", "out", cwd=place)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()[-1:]
    assert "another steps" in line and "Traceback" not in done.stderr
