"""Merges of two fine-tuned checkpoints, on a byte model."""

import json

import pytest

from experiments.pangu_embedded import config, merging, merging_report, report
from pangu_jax.core.errors import InputError


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["merging.py", *map(str, options)])
    merging.main()


@pytest.mark.long
def test_every_rule_merges_what_two_halves_made(monkeypatch, capsys, tmp_path, tiny_run, questions):
    asked = []
    monkeypatch.setattr(
        merging, "_opened_by_transformers", lambda *a: asked.append(a) or {"difference": None}
    )
    out = tmp_path / "run"
    options = ("--checkpoint", tiny_run, "--data", questions, "--out", out)
    run(monkeypatch, *options)
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert len(asked) == len(merging.RULES)
    first, second = results["halves/0"]["scores"]
    assert first != second
    assert results["base"]["merged"] not in (first, second)
    merges = [results[f"{rule}/0"]["merged"] for rule in merging.RULES]
    assert merges[1] == pytest.approx(merges[0], rel=1e-3), "an arc that is hardly bent"
    assert all(f"| {rule}" in shown for rule in merging.RULES)
    assert shown[shown.index("| model |") :].strip() in (out / "report.md").read_text()
    assert (out / "plots" / "bits.png").is_file()
    run(monkeypatch, *options)
    assert len(asked) == len(merging.RULES), "nothing is computed twice"
    assert shown.endswith(capsys.readouterr().out)


def test_too_few_solutions_are_refused(monkeypatch, tmp_path, tiny_run, questions):
    monkeypatch.setitem(merging.MERGES, "smoke", merging.Merging(29, (0,)))
    with pytest.raises(InputError, match="30 solutions"):
        run(monkeypatch, "--checkpoint", tiny_run, "--data", questions, "--out", tmp_path / "run")


def test_the_plot_of_the_judges_has_the_numbers_of_the_table(tmp_path, drawn):
    experiment, results = config.Experiment(12, seeds=(0, 1)), {}
    for seed in experiment.seeds:
        head, shorter, teacher = (
            [value + seed / 50, value - 0.1, value + 0.1, 40] for value in (0.8, 0.6, 0.7)
        )
        results[f"preference/{seed}"] = {"held out": head, "the shorter": shorter}
        results[f"teacher/{seed}"] = {"held out": teacher}
    yes = {"says yes": 0.0, "failed": 1}
    results["evaluator"] = {
        "alone": {"agrees": [0.5, 0.4, 0.6, 80], **yes},
        "with the right answer": {"agrees": [0.55, 0.45, 0.65, 80], **yes},
    }
    written = report.write_report(tmp_path, experiment, results).read_text()
    assert (tmp_path / "plots" / "agreement.png").read_bytes()[:4] == b"\x89PNG"
    assert "![agreement with the rules](plots/agreement.png)" in written
    points, beside = drawn[""]
    assert beside == {"chance": 0.5}
    table = [line for line in written.splitlines() if line.startswith("| ")][1:]
    assert len(table) == sum(map(len, points.values())) == 8
    for name, found in points.items():
        rows = [line for line in table if line.startswith(f"| {name}, ")]
        for line, (value, low, high) in zip(rows, found, strict=True):
            assert f"| {value:.3f} | {low:.3f}-{high:.3f} |" in line


def test_the_plot_of_merges_has_the_numbers_of_the_table(tmp_path, drawn):
    experiment = config.Merging(40, seeds=(0, 1))
    results = {"base": {"merged": 0.928}}
    for seed in experiment.seeds:
        results[f"halves/{seed}"] = {"scores": [0.709 + seed / 100, 0.708]}
        for place, rule in enumerate(config.RULES):
            merged = 0.705 + place / 500
            results[f"{rule}/{seed}"] = {"merged": merged, "difference": None}
    written = merging_report.write_report(tmp_path, experiment, results).read_text()
    assert "![bits per byte](plots/bits.png)" in written
    points, beside = drawn[""]
    assert beside == {"the base": 0.928}
    assert points["trained on one half"] == [(0.709,) * 3, (0.719,) * 3]
    lines = [line.split("|") for line in written.splitlines() if line.startswith("| ")][2:]
    assert [line[1].strip() for line in lines] == list(points)
    for line, found in zip(lines, points.values(), strict=True):
        values = [value for value, _, _ in found]
        assert float(line[2].split("±")[0]) == pytest.approx(sum(values) / 2, abs=1e-3)
    assert lines[2][3].strip() == "2 of 2" and lines[-1][3].strip() == "0 of 2"
    assert lines[2][4].strip() == "not tried"
