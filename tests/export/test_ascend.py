"""The atc command is a pure function; operators outside the profile are named with their source."""

import dataclasses
import os
import subprocess

import jax
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.export.artifact import Artifact, Compiled, Tensor
from pangu_jax.export.ascend import atc
from pangu_jax.export.ascend.profile import PROFILES, profile, report, violations
from pangu_jax.export.onnx.model import convert

STEP = Compiled(
    "decode",
    "decode.onnx",
    (Tensor("token", (1,), "int32"), Tensor("past_key_0", (1, 24, 2, 4), "float32")),
    (),
    {"MatMul": 3},
)


def test_the_command_line_is_exactly_this():
    assert atc.atc_command(STEP, "ascend310p3") == [
        "atc",
        "--model=decode.onnx",
        "--framework=5",
        "--output=decode",
        "--soc_version=Ascend310P3",
        "--input_format=ND",
        "--input_shape=token:1;past_key_0:1,24,2,4",
        "--log=error",
    ]
    words = atc.atc_command(STEP, "Ascend910B4", precision_mode="allow_mix_precision")
    assert words[-1] == "--precision_mode=allow_mix_precision"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Ascend310P9", "Ascend310P1"),
        ("310p3", "npu-smi info"),
        ("H100", "npu-smi info"),
        ("", "npu"),
    ],
)
def test_unknown_chips_are_refused_with_near_names(name, said):
    with pytest.raises(InputError, match=said):
        atc.check_soc(name)


def test_open_dimensions_and_unknown_modes_are_refused():
    wide = dataclasses.replace(STEP, inputs=(Tensor("x", ("b", 3), "float32"),))
    with pytest.raises(InputError, match="input x has an open dimension"):
        atc.atc_command(wide, "Ascend310P3")
    with pytest.raises(InputError, match="no precision mode 'fast'"):
        atc.atc_command(STEP, "Ascend310P3", precision_mode="fast")


def test_profiles_are_selected_or_refused():
    programs = tuple(
        dataclasses.replace(STEP, name=n) for n in ("prefill_8", "prefill_16", "decode")
    )
    artifact = Artifact("onnx", programs, {}, (), {}, facts={"profiles": (8, 16)})
    assert [p.name for p in atc.select(artifact, [16])] == ["prefill_16", "decode"]
    assert len(atc.select(artifact, None)) == 3
    with pytest.raises(InputError, match="profile 32 was not exported; the artifact has 8, 16"):
        atc.select(artifact, [32])


def test_the_script_quotes_and_stops_at_the_first_failure(tmp_path):
    commands = [atc.atc_command(STEP, "Ascend310P3")]
    atc.write_script(tmp_path / "c.sh", commands)
    text = (tmp_path / "c.sh").read_text()
    assert "'--input_shape=token:1;past_key_0:1,24,2,4'" in text
    assert os.access(tmp_path / "c.sh", os.X_OK)
    assert subprocess.run(["sh", "-n", tmp_path / "c.sh"]).returncode == 0


def test_without_atc_it_is_said_what_to_run_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = atc.run_atc(tmp_path, [atc.atc_command(STEP, "Ascend310P3")], script_name="c.sh")
    assert not outcome.ran
    assert "./c.sh" in outcome.message
    assert "CANNExecutionProvider" in outcome.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [0, 1])
def test_atc_on_the_path_is_run_and_its_log_kept(tmp_path, monkeypatch, status):
    tool = tmp_path / "bin" / "atc"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "ATC start $*"\npwd\necho oops >&2\nexit {status}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    folder = tmp_path / "out"
    folder.mkdir()
    outcome = atc.run_atc(folder, [atc.atc_command(STEP, "Ascend310P3")], script_name="c.sh")
    log = (folder / "atc.log").read_text()
    assert outcome.ran
    assert outcome.statuses == {"decode.onnx": status}
    assert ("atc failed on decode.onnx" in outcome.message) == bool(status)
    for text in ("ATC start --model=decode.onnx", str(folder), "oops", f"[status {status}]"):
        assert text in log


def test_profiles_are_data_with_their_source():
    new, old = profile("cann-8.0"), profile("cann-5.0.4")
    assert (new.opset, new.ir) == (17, 8)
    assert {"matmul", "topk", "cumsum", "argmax", "gridsample"} <= new.operators
    assert not {"loop", "scan", "gelu", "attention", "rmsnormalization"} & new.operators
    assert new.operators - old.operators == {
        "einsum", "trilu", "layernormalization", "gridsample", "isnan",
    }  # fmt: skip
    assert all(p.source and p.cann for p in PROFILES.values())
    with pytest.raises(InputError, match="no operator profile 'cann-9'"):
        profile("cann-9")


def test_an_offending_operator_is_named_with_primitive_and_line():
    lowered = convert(
        lambda p, x: {"y": jax.numpy.isfinite(x), "z": x + 1}, {}, {"x": np.ones(3, np.float32)}
    )
    found = violations("forward", lowered.graph.nodes, profile("cann-5.0.4"))
    assert [(o.operator, o.count) for o in found] == [("IsNaN", 1)]
    assert found[0].origin.startswith("is_finite at test_ascend.py:")
    text = report({"forward": lowered.operators}, found, profile("cann-5.0.4"))
    assert "not ATC-clean" in text
    assert "1 x IsNaN, from is_finite at test_ascend.py:" in text
    assert "ATC-clean: every operator" in report({"f": lowered.operators}, [], profile("cann-8.0"))
