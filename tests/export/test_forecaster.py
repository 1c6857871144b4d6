"""TimePro: its log-step scan and its deformable sampling, by product and by lookup, as ONNX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint.forecaster import Forecaster, ForecasterConfig, save
from pangu_jax.cli.main import main
from pangu_jax.core.spec import is_spec
from pangu_jax.export import forecaster, stablehlo
from pangu_jax.export.ascend.profile import profile, violations
from pangu_jax.export.implementations import export_forms
from pangu_jax.export.onnx.write import export
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import How

pytestmark = pytest.mark.onnx
CFG = TimeProConfig(look_back=24, horizon=8, layers=1, channels=16)


def trained(variates, seeds=1):
    rng = np.random.default_rng(3)

    def leaf(spec):  # offsets and masks far from the zeros they start at
        return jnp.asarray(rng.normal(size=spec.shape) * 0.2, jnp.float32)

    params = [jax.tree.map(leaf, timepro.spec(CFG), is_leaf=is_spec) for _ in range(seeds)]
    numbers = tuple(float(n) for n in rng.uniform(1, 3, variates))
    cfg = ForecasterConfig(
        CFG, tuple(f"s{n}" for n in range(variates)), numbers, numbers, 3600, "s", False,
        tuple(range(seeds)), 0.9, 0.9, "test",
    )  # fmt: skip
    return Forecaster(cfg, params, rng.uniform(1, 2, (CFG.horizon, variates)))


@pytest.mark.parametrize(("variates", "sampling"), [(5, "dense"), (90, "reference")])
def test_forecasts_are_the_models_and_atc_clean(variates, sampling, tmp_path):
    model = trained(variates)
    how = forecaster.forms(model, How(impl=export_forms()))
    assert how.implementation("deform_sample") == sampling
    assert how.implementation("selective_states") == "export"
    bundle = forecaster.bundle(model, batch=2, how=how)
    _, rows, lowered = export(bundle, tmp_path)
    assert {row.output for row in rows} == {"forecast", "low", "high"}
    assert max(row.relative for row in rows) <= 2e-5
    graph = lowered["forecast"]
    assert not violations("forecast", graph.graph.nodes, profile("cann-8.0"))
    assert not {"Loop", "Scan", "Einsum", "If"} & {*graph.operators}
    # The scan takes log2 steps over the variates, not one per variate.
    assert graph.operators["Pad"] < 30
    assert sum(graph.operators.values()) < 3000


@pytest.mark.long
def test_members_are_averaged_and_scaled_back():
    model = trained(4, seeds=2)
    bundle = forecaster.bundle(model)
    assert bundle.facts["intervals"] == "fixed"
    assert "nothing adapts them to newer data" in bundle.notes[0]
    x = bundle.programs[0].samples["random"]["x"]
    found = bundle.programs[0].reference(bundle.params, x=x)
    mean, std = (np.asarray(a, np.float32) for a in (model.cfg.mean, model.cfg.std))
    one = jax.jit(
        lambda p, x: timepro.apply(p, x, cfg=CFG),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    each = [one(p, (x - mean) / std) for p in model.params]
    wanted = np.mean([np.asarray(e) for e in each], 0) * std + mean
    np.testing.assert_allclose(found["forecast"], wanted, rtol=1e-5, atol=1e-5)
    half = np.asarray(found["high"] - found["low"])[0] / 2
    np.testing.assert_allclose(half, model.half_width, rtol=1e-4)


FRESH = """
import sys
import numpy as np
from pangu_jax.export.run import open_runner
from pangu_jax.nn.how import How
_, run = open_runner(sys.argv[1])
with np.load(sys.argv[2]) as file:
    np.savez(sys.argv[3], **{name: run(None, {"x": file[name]})["forecast"] for name in file})
assert "pangu_jax.models" not in sys.modules
"""


@pytest.mark.long
def test_the_command_exports_a_forecaster(tmp_path, capsys):
    """And a process that knows no model forecasts from it, however many windows it is given."""
    model, out = trained(3), tmp_path / "out"
    save(model, tmp_path / "model")
    options = ["--target", "stablehlo", "--platforms", "cpu,cuda,tpu", "--out", out]
    for words in (["export", tmp_path / "model", *options], ["run", out, "--check"]):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 0, capsys.readouterr().err
    assert "forecast  random  low" in capsys.readouterr().out
    assert stablehlo.load(out).programs[0].inputs[0].shape == ("b", 24, 3)
    windows = np.random.default_rng(1).normal(size=(5, 24, 3)).astype(np.float32)
    given, found = tmp_path / "windows.npz", tmp_path / "found.npz"
    np.savez(given, five=windows, one=windows[:1])
    command = [sys.executable, "-W", "error", "-c", FRESH, out, given, found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bundle = forecaster.bundle(model)
    want = bundle.programs[0].reference(bundle.params, x=windows)["forecast"]
    with np.load(found) as file:
        for name, rows in (("five", 5), ("one", 1)):
            assert np.abs(file[name] - want[:rows]).max() <= 1e-4 * np.abs(want).max()
