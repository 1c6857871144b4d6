"""The MultiConIR experiment with stand-ins: kept apart, resumed cell by cell, reported."""

import csv
import dataclasses
import importlib
import json
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import encode_for_encoder
from pangu_jax.data.multiconir_fact import Record, found_values, names, texts
from pangu_jax.models import embedder
from pangu_jax.sharding.layout import init

MODULES = ("config", "measure", "report", "run")
TEN = range(1, 11)
# A word of the model's tokenizer is one letter, so every name is one of its own.
KINDS = ("director", "writer", *["cast"] * 5)


@pytest.fixture(scope="module")
def modules():
    """The experiment's modules by name."""
    return {name: importlib.import_module(f"experiments.multiconir.{name}") for name in MODULES}


def film(number, people):
    own = [("year", str(1980 + number)), ("genre", f"g{number}")]
    last = ("title_len", str(number))
    return Record(f"film {number}", (*own, *zip(KINDS, people, strict=True), last))


def people(number):
    return [f"First{number}{letter} Last{number}{letter}" for letter in "abcdefg"]


RECORDS = [film(number, people(number)) for number in range(10)]
# Of the test: one of the records, and a film with two people of another.
TESTED = [RECORDS[0], film(20, [*people(20)[:5], *people(1)[:2]]), film(21, people(21))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    first, second = [], []
    for record in TESTED:
        said = [f"{kind} {value}" for kind, value in record.facts]
        broken = [[*said[:i], f"lacks z{i}", *said[i + 1 :]] for i in range(10)]
        graded = [[*said[: 10 - k], *[f"lacks z{i}" for i in range(k)]] for k in range(11)]
        listed = [f"{i}. {text}" for i, text in enumerate(said, 1)]
        first.append(
            {f"Query{i}": "Find: " + "; ".join(listed[:i]) for i in TEN}
            | {"Positive": " ".join(said)}
            | {f"HN{i}": " ".join(broken[i - 1]) for i in TEN}
            | {f"HN_{i}": " ".join(broken[i - 1]) for i in TEN}
        )
        second.append(
            {"Query10": "Find: " + "; ".join(listed), "Natural_Query10": ", ".join(said)}
            | {"Positive": " ".join(graded[0])}
            | {f"HN{k}": " ".join(graded[k]) for k in TEN}
        )
    for name, rows in (("Movies_Task1", first), ("Movies_Task2_&_3", second)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    lines = [json.dumps({"id": r.id, "facts": [list(f) for f in r.facts]}) for r in RECORDS]
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tiny(modules):
    """The smoke preset for a model that takes 24 tokens."""
    smoke = modules["config"].PRESETS["smoke"]
    sizes = {
        "batch": 4,
        "accumulate": 1,
        "length": 24,
        "poolings": ("last",),
        "causal_poolings": ("last",),
    }
    return dataclasses.replace(smoke, **sizes, decoder_poolings=("last",), causal=(32, 1))


def test_training_texts_have_no_name_of_the_test(modules, tiny, data, encoder_folder):
    run, rows = modules["run"], modules["measure"].read_test(data, None)
    made = run.prepare(tiny, rows, RECORDS, model=encoder_folder)
    assert [record.id for record in made.records] == [f"film {i}" for i in range(1, 10)]
    tested = texts(row for own in rows.values() for row in own)
    seen = []
    pairs = modules["run"].pair_batches

    def noted(records, encode, **options):
        def note(batch):
            seen.extend(batch)
            return encode(batch)

        return pairs(records, note, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "pair_batches", noted)
        counted = Counter()
        stream = run.batches(made, made.model, seed=0, shuffled=False, seen=counted)
        found, *_ = (next(stream) for _ in range(3))
    assert found["queries"]["tokens"].shape == (4, 24)
    assert found["negatives"]["valid"].shape == (4, 2, 24)
    assert len(seen) == 3 * (4 + 4 + 8) and not tested & set(seen)
    whole = encode_for_encoder(made.model.tokenizer, seen, 1000)
    assert counted == {"texts": len(seen), "cut": sum(len(text.ids) > 24 for text in whole)}
    assert counted["cut"] < len(seen)  # some fit
    everyone = names(RECORDS) | names(TESTED)
    assert not found_values(found_values(everyone, tested), seen)


def test_skipping_the_mapping_ends_the_experiment(modules, tiny, data, encoder_folder, monkeypatch):
    run, rows = modules["run"], modules["measure"].read_test(data, None)
    monkeypatch.setattr(run, "keep_apart", lambda records, rows, seed: records)
    with pytest.raises(InputError, match="9 names of the training records occur in the test"):
        run.prepare(tiny, rows, RECORDS, model=encoder_folder)


def untrained(run, model, params, **settings):
    """In place of a training, whose step takes long to compile."""
    del run, settings
    own = init(embedder.spec(model.cfg), key=jax.random.key(0)) if params is None else params
    return dataclasses.replace(model, params=own), {"texts": 3, "cut": 2}


@pytest.mark.long
@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_runs_resumes_and_reports(
    trains, modules, tiny, data, encoder_folder, tiny_run, tmp_path, monkeypatch
):
    run, out = modules["run"], tmp_path / "run"
    if not trains:
        monkeypatch.setattr(run, "_trained", untrained)
    monkeypatch.setitem(modules["config"].PRESETS, "smoke", tiny)
    words = ["run.py", "--data", data, "--records", data / "records.jsonl", "--out", out]
    words += ["--model", encoder_folder, "--decoder", tiny_run]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    run.main()
    results = json.loads((out / "results.json").read_text())
    cells = ["overlap", "bm25", "bm25 official", "length", "base", "tuned-0", "shuffled-0"]
    studied = ["pooling-encoder-last", "pooling-decoder-last", "pooling-causal-last-0"]
    assert sorted(results) == sorted([*cells, *studied])
    assert results["overlap"]["shared_records"] == 2  # in both files
    assert results["overlap"]["trained"] == 9 and results["overlap"]["shared_names"] == 9
    assert results["bm25"]["Movies"]["task1"]["win_rate"] == [1.0] * 10
    assert np.shape(results["tuned-0"]["Movies"]["wins"]) == (3, 10)
    text = (out / "report.md").read_text()
    for part in ("1 of them are left out", "| tuned | Movies |", "| tuned on shuffled pairs |",
                 "| length of the document |", "The target of +5 points is", "| decoder-last |",
                 "year: 0 of the test's 0 values"):  # fmt: skip
        assert part in text, part
    if not trains:
        assert "Of the 9 texts that all trainings read, 6 (66.67%) were cut to 24 tokens" in text
    assert (out / "plots" / "places-Movies.png").stat().st_size > 1000
    # What is there is not made again; what is not there is.
    (out / "cells" / "tuned-0.json").unlink()
    made = []
    tuned = run._tuned
    monkeypatch.setattr(run, "_tuned", lambda *given: made.append(given[1:]) or tuned(*given))
    run.main()
    assert made == [("tuned", 0)]
    again = json.loads((out / "results.json").read_text())
    assert list(again) == list(results)


def test_gains_are_paired_over_rows(modules):
    experiment = modules["config"].PRESETS["smoke"]
    base = np.zeros((40, 10), int)
    better = base.copy()
    better[:10, 9] = 1
    results = {"base": {"Movies": {"wins": base.tolist()}},
               "tuned-0": {"Movies": {"wins": better.tolist()}}}  # fmt: skip
    (found,) = modules["report"].gains(experiment, results, "tuned", "Movies")
    assert found.value == pytest.approx(0.25) and 0 < found.low < 0.25 < found.high
