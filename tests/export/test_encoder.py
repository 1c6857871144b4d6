"""Encoders as programs: the model's vectors, whatever is beside a text, on every target."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pangu_jax.checkpoint import hf
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError
from pangu_jax.export import encoder as exported
from pangu_jax.export.ascend.profile import profile, violations
from pangu_jax.export.implementations import export_forms
from pangu_jax.export.onnx.write import export
from pangu_jax.export.run import open_runner
from pangu_jax.models import encoder
from pangu_jax.nn.how import How

RERANKER = Path(__file__).parents[1] / "golden" / "reranker.npz"
HOW = How(impl=export_forms())


@pytest.fixture(scope="module")
def model(encoder_folder):
    return hf.load(encoder_folder, dtype="float32")


def inputs(length=12, rows=2):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 48, (rows, length)).astype(np.int32)
    sizes = np.arange(length, length - 2 * rows, -2)
    return {"tokens": tokens, "valid": np.arange(length) < sizes[:, None]}


def cosines(found, want):
    """Of rows."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(want, axis=-1)
    return (np.asarray(found, np.float64) * want).sum(-1) / lengths


def call(*words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    return end.value.code


@pytest.mark.long(but=1)
@pytest.mark.onnx
@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "last", "max"])
def test_onnx_gives_the_models_vectors_and_is_atc_clean(pooling, model, tmp_path):
    params, cfg = model
    cfg = dataclasses.replace(cfg, pooling=pooling, normalize=pooling == "max")
    bundle = exported.bundle(params, cfg, profiles=(12,), batch=2, how=HOW)
    artifact, rows, lowered = export(bundle, tmp_path)
    assert max(row.relative for row in rows) <= 2e-5
    graph = lowered["vectors_12"]
    for cann in ("cann-8.0", "cann-5.0.4"):
        assert not violations("vectors_12", graph.graph.nodes, profile(cann))
    assert not {"Loop", "Scan", "Einsum", "If"} & {*graph.operators}
    assert artifact.facts["pooling"] == pooling
    found = bundle.programs[0].reference(bundle.params, **inputs())["vectors"]
    want = jax.jit(partial(encoder.embed, cfg=cfg))(params, **inputs())
    np.testing.assert_allclose(found, want, atol=1e-5)
    run = open_runner(tmp_path)[1]
    assert cosines(run("vectors_12", inputs())["vectors"], want).min() >= 0.99999


@pytest.mark.long
def test_the_command_exports_vectors_for_any_batch(encoder_folder, model, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", encoder_folder, "--target", "stablehlo", "--profiles", "12,24", "--out", out]
    assert call(*words) == 0
    said = capsys.readouterr().out
    assert f"note: pooling is mean, scaled to length 1, by {encoder_folder}" in said
    assert "vectors_24  real" in said
    assert call("run", out, "--check") == 0
    artifact, run = open_runner(out)
    assert [p.name for p in artifact.programs] == ["vectors_12", "vectors_24"]
    assert artifact.facts["kind"] == "encoder" and artifact.facts["normalized"] == 1
    assert (out / "tokenizer.json").is_file()
    params, cfg = model
    given = inputs(12, 3)
    found = run("vectors_12", given)["vectors"]
    want = jax.jit(partial(encoder.embed, cfg=cfg))(params, **given)
    np.testing.assert_allclose(found, want, atol=1e-5)
    longer = {name: np.pad(x, ((0, 0), (0, 12))) for name, x in given.items()}
    np.testing.assert_allclose(run("vectors_24", longer)["vectors"], found, atol=1e-5)


@pytest.mark.onnx
def test_the_command_writes_for_ascend(encoder_folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", encoder_folder, "--target", "ascend", "--soc", "Ascend310P3"]
    assert call(*words, "--profiles", "12", "--pooling", "last", "--out", out) == 0
    said = capsys.readouterr().out
    assert "ATC-clean: every operator is on the list" in said
    assert "pooling is last, scaled to length 1, by the option pooling" in said
    assert call("run", out, "--check") == 0


def test_what_scores_pairs_is_exported_with_its_types(model):
    params, cfg = model
    head = {"kernel": np.ones((32, 2), np.float32), "bias": np.zeros(2, np.float32)}
    params = {**params, "classifier": head}
    cfg = dataclasses.replace(cfg, classes=2, pooling=None)
    bundle = exported.bundle(params, cfg, profiles=(12,), batch=2)
    assert [*bundle.programs[0].inputs] == ["tokens", "valid", "token_types"]
    sample = bundle.programs[0].samples["random"]
    found = bundle.programs[0].reference(bundle.params, **sample)["scores"]
    want = jax.jit(partial(encoder.classify, cfg=cfg))(params, **sample)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert bundle.facts["classes"] == 2 and "pooling" not in bundle.facts


@pytest.mark.onnx
def test_a_reranker_is_exported_and_atc_clean(tmp_path, capsys):
    """By the command, without a tokenizer; one score per pair, as the model gives it."""
    folder = tmp_path / "model"
    folder.mkdir()
    with np.load(RERANKER) as golden:
        weights = {n.removeprefix("weights/"): golden[n] for n in golden if "weights/" in n}
        keys = json.loads(str(golden["config"]))
        given = {"tokens": golden["tokens"], "valid": golden["valid"] > 0,
                 "token_types": golden["token_types"]}  # fmt: skip
        want = golden["scores"]
    save_file({n: x.astype(np.float32) for n, x in weights.items()}, folder / "model.safetensors")
    keys["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(keys))
    words = ["export", folder, "--profiles", "20"]
    out = tmp_path / "onnx"
    assert call(*words, "--target", "onnx", "--batch", 3, "--out", out) == 0
    found = open_runner(out)[1]("scores_20", given)["scores"]
    assert np.abs(found - want).max() / np.abs(want).max() <= 1e-5
    assert cosines(found.T, want.T) >= 0.99999
    words += ["--target", "ascend", "--soc", "Ascend310P3"]
    assert call(*words, "--out", tmp_path / "ascend") == 0
    assert "ATC-clean: every operator is on the list" in capsys.readouterr().out


def test_what_cannot_be_exported(model):
    params, cfg = model
    with pytest.raises(InputError, match="profile 25 is outside 1 to 24"):
        exported.bundle(params, cfg, profiles=(12, 25))
    with pytest.raises(InputError, match="at least one profile"):
        exported.bundle(params, cfg, profiles=())
    with pytest.raises(InputError, match="pooling is not known"):
        exported.bundle(params, dataclasses.replace(cfg, pooling=None), profiles=(12,))
