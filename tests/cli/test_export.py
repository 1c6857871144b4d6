"""`pangu-jax export`, `run` and `backends` as a user meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.main import main
from pangu_jax.export import parity
from pangu_jax.export.artifact import load
from pangu_jax.export.onnx import elementwise, lower

pytestmark = pytest.mark.onnx
MODEL = Path(__file__).parents[1] / "golden" / "llama2"
MOGE = Path(__file__).parents[1] / "golden" / "pangu_pro_moe"


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An ONNX artifact as the command writes it."""
    folder = tmp_path_factory.mktemp("cli") / "out"
    options = ["--target", "onnx", "--profiles", "8", "--out", folder]
    assert call("export", MODEL, *options) == 0
    return folder


def test_export_prints_the_parity_table_and_run_checks_it(exported, capsys):
    artifact = load(exported)
    assert [p.name for p in artifact.programs] == ["prefill_8", "decode"]
    assert artifact.facts["slots"] == 16
    assert call("run", exported, "--check") == 0
    out = capsys.readouterr().out
    assert "max rel" in out
    assert "prefill_8  random  logits" in out


def test_run_takes_arrays_and_gives_arrays(exported, tmp_path, capsys):
    inputs = {
        "tokens": np.array([[5, 3, 2, 9, 0, 0, 0, 0]], np.int32),
        "length": np.array([4], np.int32),
    }
    np.savez(tmp_path / "x.npz", **inputs)
    options = ["--program", "prefill_8", "--inputs", tmp_path / "x.npz"]
    assert call("run", exported, *options, "--out", tmp_path / "y.npz") == 0
    with np.load(tmp_path / "y.npz") as file:
        assert file["key_0"].shape[:2] == (1, 16)
        params, cfg, _ = open_checkpoint(MODEL, dtype="float32")
        from pangu_jax.models import decoder

        hidden = decoder.apply(params, inputs["tokens"][:, :4], cfg=cfg).hidden
        wanted = np.asarray(decoder.logits(params, hidden, cfg=cfg))[0, -1]
        assert np.abs(file["logits"][0] - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert call("run", exported, *options) == 0
    assert "logits       float32 [1, " in capsys.readouterr().out
    assert call("run", exported) == 0
    out = capsys.readouterr().out
    assert "in  past_key_0     float32 [1, 16, " in out


@pytest.mark.long
def test_ascend_writes_the_report_and_a_script_and_says_where_to_run_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    out = tmp_path / "out"
    options = ["--target", "ascend", "--soc", "ascend310p3", "--profiles", "4,8", "--out", out]
    assert call("export", MOGE, *options) == 0
    text = capsys.readouterr().out
    assert "ATC-clean: every operator is on the list" in text
    assert (
        "atc --model=prefill_4.onnx --framework=5 --output=prefill_4 --soc_version=Ascend310P3"
        in text
    )
    assert "atc is not on this machine's PATH" in text
    assert "ATC-clean" in (out / "operators.txt").read_text()
    script = (out / "compile_ascend.sh").read_text()
    assert script.count("\natc ") == 3
    assert os.access(out / "compile_ascend.sh", os.X_OK)
    assert call("run", out, "--check") == 0


def test_ascend_runs_atc_where_it_is(tmp_path, capsys, monkeypatch):
    tool = tmp_path / "bin" / "atc"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "ATC $2 $3"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    out = tmp_path / "out"
    options = ["--target", "ascend", "--soc", "Ascend910B4", "--profiles", "4", "--out", out]
    assert call("export", MODEL, *options) == 0
    assert "atc compiled 2 programs; its output is in atc.log" in capsys.readouterr().out
    assert (out / "atc.log").read_text().count("[status 0]") == 2


@pytest.mark.long
def test_stablehlo_serves_several_platforms_with_any_batch(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--platforms", "cpu,cuda", "--profiles", "8", "--dtype", "bfloat16", "--out", out]
    assert call("export", MODEL, "--target", "stablehlo", *options) == 0
    artifact = load(out)
    assert artifact.platforms == ("cpu", "cuda")
    assert artifact.tolerance == parity.TOLERANCES["bfloat16"]
    assert artifact.program("decode").inputs[2].dtype == "bfloat16"
    assert artifact.program("decode").inputs[2].shape[0] == "b"
    assert call("run", out, "--check") == 0
    assert "logits" in capsys.readouterr().out


@pytest.mark.long
def test_what_cannot_be_compared_here_says_how_to_later(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--platforms", "tpu", "--profiles", "4", "--batch", 2, "--out", out]
    assert call("export", MOGE, "--target", "stablehlo", *options) == 0
    assert f"run pangu-jax run {out} --check" in capsys.readouterr().out
    assert call("run", out, "--check") == 2
    assert "exported for tpu; this machine has cpu" in capsys.readouterr().err


def test_an_export_that_is_not_jax_is_refused_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    wrong = dict(lower.RULES, logistic=elementwise.RULES["tanh"])
    monkeypatch.setattr(lower, "RULES", wrong)
    out = tmp_path / "out"
    assert call("export", MODEL, "--target", "onnx", "--profiles", "4", "--out", out) == 2
    err = capsys.readouterr().err
    assert "differs from jax" in err
    assert "over the tolerance 1e-04; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_in_one_sentence(exported, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    np.savez(tmp_path / "x.npz", tokens=np.zeros((1, 4), np.int32))
    longer = {"tokens": np.zeros((1, 8), np.int32), "length": np.array([9], np.int32)}
    np.savez(tmp_path / "y.npz", **longer)
    cases = {
        ("export", tmp_path, "--target", "onnx", *out): "is no checkpoint",
        ("export", MODEL, "--target", "onnx", "--dtype", "bfloat16", *out): "compute in float32",
        (
            "export",
            MODEL,
            "--target",
            "onnx",
            "--profiles",
            "9999",
            *out,
        ): "profile 9999 is outside",
        ("export", MODEL, "--target", "onnx", "--profiles", "a", *out): "lengths such as 128,512",
        ("export", MODEL, "--target", "onnx", "--cache", 4, *out): "4 slots is too short",
        ("export", MODEL, "--target", "onnx", "--batch", 0, *out): "batch must be at least 1",
        ("export", MODEL, "--target", "onnx", "--out", tmp_path / "full"): "no artifact of ours",
        ("export", MODEL, "--target", "ascend", *out): "needs soc",
        ("export", MODEL, "--target", "ascend", "--soc", "H100", *out): "there is no SoC 'H100'",
        ("export", MODEL, "--target", "stablehlo", "--platforms", "gpu", *out): "no platform 'gpu'",
        ("run", tmp_path): "is no artifact",
        ("run", exported, "--inputs", tmp_path / "none.npz"): "cannot read",
        ("run", exported, "--inputs", tmp_path / "x.npz"): "name a program",
        (
            "run",
            exported,
            "--inputs",
            tmp_path / "x.npz",
            "--program",
            "prefill_8",
        ): "has shape (1, 4)",
        ("run", exported, "--inputs", tmp_path / "y.npz", "--program", "prefill_8"): (
            "input 'length' has 9; prefill_8 takes 1 to 8"
        ),
    }
    for arguments, said in cases.items():
        assert call(*arguments) == 2, arguments
        err = capsys.readouterr().err.strip()
        assert err.startswith("pangu-jax: ")
        assert said in err, (arguments, err)
        assert err.count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_run_in_a_process_without_model_code(exported):
    code = (
        "import sys; from pangu_jax.cli.main import main\n"
        f"try: main(['run', {str(exported)!r}, '--check'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "rooms = {n.split('.')[1] for n in sys.modules if n.startswith('pangu_jax.')}\n"
        "assert rooms == {'cli', 'core', 'export'}, rooms\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_backends_names_what_is_here_and_why_each_operator_picks_what(capsys):
    assert call("backends") == 0
    out = capsys.readouterr().out
    assert f"jax          {jax.__version__}" in out
    assert "onnxruntime" in out
    assert "CPUExecutionProvider" in out
    assert "gather" in out
    assert "very few pairs" in out
    assert call("backends", "--platform", "tpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    picked = {(c["operator"], c["implementation"]) for c in found["choices"]}
    assert ("expert_mlp", "ragged") in picked
    assert found["atc"]
