"""The experiments on SlimLLM and Pangu Light: cells, what is recovered, resuming, the reports."""

import argparse
import dataclasses
import json
import sys

import numpy as np
import pytest

from experiments.pangu_light import config as light_config
from experiments.pangu_light import report as light_report
from experiments.pangu_light import run as light
from experiments.slimllm import config as slim_config
from experiments.slimllm import report as slim_report
from experiments.slimllm import run as slim
from pangu_jax.core.errors import InputError
from pangu_jax.models import presets as models
from pangu_jax.study import language, options
from pangu_jax.study.language import check_workers

SMALL = {
    "model": models.byte_model(32, 3, 2, 2, 8, 48, 128),
    "steps": 3,
    "batch": 2,
    "length": 64,
    "recover_steps": 2,
    "eval_windows": 8,
}
QUESTION = {"instruction": "Is water wet?", "label": "True"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 40 kB, no two windows of which are alike, and a file of questions."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, 7).tolist()).decode() for _ in range(5000)]
    lines = [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
    (folder / "some.txt").write_text("\n".join(lines))
    (folder / "wet.jsonl").write_text("\n".join(json.dumps(QUESTION) for _ in range(3)))
    return folder


def started(module, experiment, words, monkeypatch, capsys) -> str:
    """What the experiment says when it is run with a preset and these words."""
    monkeypatch.setitem(module.PRESETS, "smoke", experiment)
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    module.main()
    return capsys.readouterr().err


@pytest.mark.long
def test_slimllm_recovers_what_it_is_asked_to_and_goes_on(text, tmp_path, monkeypatch, capsys):
    experiment = slim_config.Experiment(
        **SMALL,
        targets=("params=0.8", "params=0.6"),
        methods=(("magnitude", "none"),),
        draws=2,
        windows=4,
        window_length=32,
        eval_lengths=(32,),
        recover=("params=0.6",),
        recover_draws=1,
        latency=(1, 32),
    )
    monkeypatch.setattr(language, "BRIEF", 1)
    words = ["--data", text / "some.txt", "--questions", text / "wet.jsonl", "--out", tmp_path]
    said = started(slim, experiment, words, monkeypatch, capsys)
    name = "params={}-magnitude-none-draw{} is done".format
    assert said.index(name(0.8, 0)) < said.index(name(0.6, 0)) < said.index(name(0.8, 1))
    results = json.loads((tmp_path / "results.json").read_text())
    assert sorted(results) == [
        "dense",
        *(f"params={x}-magnitude-none-draw{d}" for x in (0.6, 0.8) for d in (0, 1)),
    ]
    after = [name for name, cell in results.items() if "recovered" in cell]
    assert after == ["params=0.6-magnitude-none-draw0"]
    cell = results[after[0]]
    assert cell["recovered"]["tokens"] == 2 * 2 * 64
    assert cell["recovered"]["own"] != cell["own"] and 0 <= cell["wet_accuracy"] <= 1
    assert "wet_accuracy" in cell["recovered"] and cell["wet_chance"] == 0.5
    # What is done keeps the log of its recovery alone.
    assert [p.name for p in (tmp_path / "training" / after[0]).glob("[!.]*")] == ["metrics.jsonl"]
    (tmp_path / "cells" / f"{after[0]}.json").unlink()
    monkeypatch.setattr(language, "BRIEF", 2)
    again = started(slim, experiment, words, monkeypatch, capsys)
    assert again.count(" begins") == 1 and f"{after[0]} begins" in again
    same = json.loads((tmp_path / "results.json").read_text())[after[0]]
    assert [same[key] for key in ("own", "recovered")] == [cell["own"], cell["recovered"]]


@pytest.mark.long
def test_pangu_light_calibrates_every_seed_on_windows_of_its_own(
    text, tmp_path, monkeypatch, capsys
):
    experiment = light_config.Experiment(
        **SMALL,
        targets=("layers=2,params=0.6",),
        starts=("clap+slnp",),
        seeds=(0, 1),
        windows=3,
    )
    words = ["--data", text / "some.txt", "--questions", text / "wet.jsonl", "--out", tmp_path]
    seen, measured, prune, perplexity = [], [], light.prune, light.perplexity

    def pruned(base, windows, *more):
        seen.append(windows)
        return prune(base, windows, *more)

    def perplexity_of(base, params, cfg, windows):
        measured.append(windows)
        return perplexity(base, params, cfg, windows)

    monkeypatch.setattr(light, "prune", pruned)
    monkeypatch.setattr(light, "perplexity", perplexity_of)
    said = started(light, experiment, words, monkeypatch, capsys)
    assert "3 of 3 cells are done" in said
    rows = [row.tobytes() for windows in (*seen, measured[0]) for row in windows]
    assert [len(x) for x in seen] == [3, 3] and len(set(rows)) == len(rows) == 3 + 3 + 8
    results = json.loads((tmp_path / "results.json").read_text())
    cell = results["layers=2,params=0.6-clap+slnp-seed1"]
    assert cell["moved"] >= 1 and len(cell["layers"]) == 2
    assert cell["perplexity"] != cell["recovered"]["perplexity"]
    assert {"wet_accuracy", "wet_chance"} <= cell["recovered"].keys() & cell.keys()
    assert [step for step, _ in cell["curve"]] == [1, 2]
    assert cell["curve"][-1][1] == cell["recovered"]["perplexity"]
    assert not (tmp_path / "training").exists()  # it is brief
    text = (tmp_path / "report.md").read_text()
    assert "wet (chance 0.500) before | after |" in text


def test_several_workers_need_a_checkpoint():
    given = argparse.Namespace(workers=2, checkpoint=None)
    with pytest.raises(InputError, match="--workers needs --checkpoint"):
        check_workers(given)
    given.checkpoint = "model"
    check_workers(given)


def quality(own: float, accuracy: float) -> dict:
    return {"own": [2 * own, own], "csqa_accuracy": accuracy, "csqa_chance": 0.2}


def test_slimllm_reports_draws_that_are_done_before_and_after(tmp_path):
    sizes = {"parameters": 100, "flops": 100}
    experiment = dataclasses.replace(
        slim_config.PRESETS["smollm2"],
        targets=("params=0.8", "params=0.5"),
        methods=(("slimllm", "ridge"), ("random", "none")),
    )
    results = {"dense": quality(10, 0.4) | sizes}
    for draw, own in enumerate((20.0, 24.0)):  # the third draw is missing
        cell = quality(own, 0.3) | sizes | {"error_cut": 0.1, "error_repaired": 0.1}
        results[f"params=0.8-slimllm-ridge-draw{draw}"] = cell | {
            "recovered": quality(own - 8, 0.35)
        }
    results["params=0.8-random-none-draw0"] = quality(21, 0.2) | sizes | {
        "error_cut": 1, "error_repaired": 1, "recovered": quality(11.0, 0.25)}  # fmt: skip
    text = slim_report.write_report(tmp_path, experiment, results).read_text()
    assert "Only 4 of 13 cells are done" in text
    before, after = text.split("## params=0.8 after recovery")
    assert "| slimllm + ridge | 44.000 (40.000-48.000) | 22.000 (20.000-24.000) | 0.300" in before
    assert "| slimllm + ridge | 28.000 (24.000-32.000) | 14.000 (12.000-16.000) | 0.350" in after
    assert "csqa accuracy (chance 0.200, dense 0.400)" in after and "prefill speed-up" not in text
    assert "- params=0.8: random + none is best (21.000); slimllm + ridge has 22.000" in before
    assert "- params=0.8: random + none is best (11.000); slimllm + ridge has 14.000" in before
    assert "params=0.5:" not in before


def test_pangu_light_reports_every_target(tmp_path):
    experiment = dataclasses.replace(
        light_config.PRESETS["smollm2"], starts=("plain", "clap+slnp"), seeds=(0, 1)
    )
    results = {"dense": {"perplexity": 10.0, "parameters": 100}}
    for start, own in (("plain", 20.0), ("clap+slnp", 18.0)):
        for seed in (0, 1):
            name = light_report.name_of(experiment.targets[0], start, seed)
            results[name] = {
                "perplexity": own + seed, "parameters": 80, "flops": 0.8, "layers": [0, 2],
                "moved": 1, "width": 8, "sizes": "sizes", "curve": [(100, 25.0)],
                "recovered": {"perplexity": 30 - own + seed}}  # fmt: skip
    text = light_report.write_report(tmp_path, experiment, results).read_text()
    assert "clap+slnp (18.500) is below plain cutting (20.500)" in text
    assert "clap+slnp (12.500) is NOT below plain cutting (10.500); best is plain" in text
    assert text.count("No cell is done.") == 2 and "5 of\n13 cells" in text


def test_presets_for_smollm2_cut_the_same_shares():
    slim, light = (config.PRESETS["smollm2"] for config in (slim_config, light_config))
    shares = [target.split(",")[-1] for target in light.targets]
    assert shares == list(slim.targets) == list(slim.recover)
    assert slim.draws == slim.recover_draws == len(light.seeds) == 3
    assert slim.recover_tokens == light.recover_tokens
    assert len(set(slim.methods)) == 14
    assert {"plain", "clap+slnp"} <= set(light.starts)


def test_all_targets_of_a_draw_begin_before_the_next_method_and_all_methods_before_the_next_draw():
    slim_experiment, light_experiment = (
        config.PRESETS["smollm2"] for config in (slim_config, light_config)
    )
    cells = slim._plan(slim_experiment)
    assert [target for target, *_ in cells[:6]] == 2 * list(slim_experiment.targets)
    assert [draw for *_, draw in cells] == [draw for draw in range(3) for _ in range(42)]
    assert len(set(cells)) == 126
    cells = light._plan(light_experiment)
    assert [target for target, *_ in cells[:6]] == 2 * list(light_experiment.targets)
    assert [seed for *_, seed in cells] == [seed for seed in range(3) for _ in range(12)]
    assert len(set(cells)) == 36


@pytest.mark.parametrize("module", (slim, light))
def test_the_type_of_activations_can_be_chosen(module, monkeypatch):
    for words, want in (([], "float32"), (["--dtype", "bfloat16"], "bfloat16")):
        monkeypatch.setattr(sys, "argv", ["run.py", "--preset", "smollm2", *words])
        experiment, _ = options.chosen(module._options(), module.PRESETS, "paper")
        assert experiment.how.dtype == want
