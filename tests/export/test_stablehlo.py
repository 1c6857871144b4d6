"""StableHLO: any batch size, without model code, and refused where it cannot run."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.digest import json_digest
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import target, targeting
from pangu_jax.core.spec import is_spec
from pangu_jax.export import artifact as kept
from pangu_jax.export import decoder, program, stablehlo
from pangu_jax.export.implementations import (
    choices,
    export_forms,
    implementations,
    operators,
    table,
)
from pangu_jax.export.run import check, open_runner
from pangu_jax.models import decoder as model
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.moe import MoEConfig

CFG = model.DecoderConfig(
    40, 16, (LayerConfig(AttentionConfig(2, 1, 8), moe=MoEConfig(4, 2, 1, 8)),), max_length=32
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), model.spec(CFG), is_leaf=is_spec
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    bundle = decoder.bundle(
        params,
        CFG,
        profiles=(9,),
        slots=16,
        batch=stablehlo.symbolic_batch(),
        how=How(impl=export_forms()),
    )
    folder = tmp_path_factory.mktemp("artifact") / "moge"
    with kept.new_folder(folder) as new:
        stablehlo.export(bundle, new, platforms=("cpu", "cuda", "tpu"))
    return folder


@pytest.mark.long
def test_any_batch_size_gives_what_the_model_gives(folder, params):
    artifact, run = open_runner(folder)
    assert artifact.platforms == ("cpu", "cuda", "tpu")
    assert artifact.program("prefill_9").inputs[0].shape == ("b", 9)
    forward = jax.jit(lambda p, t: model.logits(p, model.apply(p, t, cfg=CFG).hidden, cfg=CFG))
    tokens = np.random.default_rng(0).integers(0, CFG.vocab, (3, 9)).astype(np.int32)
    length = np.full(3, 8, np.int32)
    wanted = np.asarray(forward(params, tokens))
    scale = np.abs(wanted).max()
    state = run("prefill_9", {"tokens": tokens, "length": length})
    assert np.abs(state.pop("logits") - wanted[:, 7]).max() <= 2e-5 * scale
    given = {f"past_{n}": x for n, x in state.items()}
    state = run("decode", {"token": tokens[:, 8], "position": length, **given})
    assert np.abs(state["logits"] - wanted[:, 8]).max() <= 2e-5 * scale


def test_batches_that_disagree_are_refused(folder):
    _, run = open_runner(folder)
    wrong = {"tokens": np.zeros((2, 9), np.int32), "length": np.ones(3, np.int32)}
    with pytest.raises(InputError, match=r"'length' has b = 3, 'tokens' has 2"):
        run("prefill_9", wrong)


FRESH = """
import sys
from pangu_jax.export.run import check
from pangu_jax.export.parity import require
artifact, rows = check({folder!r})
require(rows, artifact.tolerance)
rooms = {{n.split(".")[1] for n in sys.modules if n.startswith("pangu_jax.")}}
assert rooms == {{"core", "export"}}, rooms
assert "onnx" not in sys.modules and "tyro" not in sys.modules
print(len(rows))
"""


@pytest.mark.long
def test_it_runs_in_a_process_that_knows_no_model(folder):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH.format(folder=str(folder))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 6


@pytest.mark.long
def test_the_check_script_passes_and_fails_as_it_should(folder, tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "check_artifact.py"
    out = tmp_path / "out.json"
    command = [sys.executable, tool, folder, tmp_path / "none", "--out", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    found = json.loads(out.read_text())["artifacts"]
    assert done.returncode == 1
    assert found["moge"]["passed"]
    assert found["moge"]["worst_relative"] <= 2e-5
    assert "is no artifact" in found["none"]["error"]


def changed(folder, tmp_path, **fields):
    """The artifact with another manifest, sealed again."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    values = json.loads((copy / kept.MANIFEST).read_text())
    del values["seal"]
    values |= fields
    (copy / kept.MANIFEST).write_text(json.dumps({**values, "seal": json_digest(values)}))
    return copy


def test_a_newer_jax_made_it_and_this_one_refuses(folder, tmp_path):
    versions = {**kept.load(folder).versions, "jax": "99.1.0"}
    with pytest.raises(InputError, match=r"exported by jax 99.1.0 .*same jax or a newer one"):
        open_runner(changed(folder, tmp_path, versions=versions))


def test_an_older_jax_is_fine(folder, tmp_path):
    versions = {**kept.load(folder).versions, "jax": "0.9.9"}
    open_runner(changed(folder, tmp_path, versions=versions))


def test_another_platform_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"exported for tpu; this machine has cpu"):
        open_runner(changed(folder, tmp_path, platforms=["tpu"]))


def test_a_program_that_is_none_is_refused(folder, tmp_path):
    copy = changed(folder, tmp_path)
    (copy / "decode.stablehlo").write_bytes(b"no program at all" * 20)
    values = json.loads((copy / kept.MANIFEST).read_text())
    kept.save(kept.from_json(kept.Artifact, {k: v for k, v in values.items() if k != "seal"}), copy)
    with pytest.raises(InputError, match=r"decode.stablehlo cannot be read"):
        open_runner(copy)


@pytest.mark.parametrize("inside", [False, True])
def test_weights_beside_or_inside(inside, tmp_path):
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    x = np.ones((4, 2), np.float32)
    bundle = program.single(lambda p, x: x @ p["w"], params, {"x": x})
    artifact, rows = stablehlo.export(bundle, tmp_path, inside=inside)
    assert rows[0].relative == 0
    assert (tmp_path / stablehlo.WEIGHTS).exists() != inside
    assert artifact.weights == ("" if inside else stablehlo.WEIGHTS)
    assert check(tmp_path)[1][0].relative == 0


@pytest.mark.parametrize("inside", [False, True])
def test_a_full_disk_is_said_and_leaves_nothing(inside, tmp_path):
    params = {"w": np.ones((64, 64), np.float32)}
    x = np.ones((4, 64), np.float32)
    bundle = program.single(lambda p, x: x @ p["w"], params, {"x": x})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(InputError, match=r"^cannot write .*/out: File too large$"):  # noqa: SIM117
            with kept.new_folder(tmp_path / "out") as folder:
                stablehlo.export(bundle, folder, inside=inside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


def test_unknown_platforms_are_refused(tmp_path):
    for platforms, said in (
        (("gpu",), "no platform 'gpu'; known: cpu, cuda, tpu"),
        ((), "at least"),
    ):
        with pytest.raises(InputError, match=said):
            stablehlo.check_platforms(platforms)


def test_operators_choose_for_the_platform_that_is_exported_for():
    forms = export_forms()
    assert forms["attention"] == "reference"
    assert forms["expert_mlp"] == "dense"
    assert implementations(("cpu", "cuda"), static=True) == forms
    assert implementations(("cuda",), static=False) == forms
    assert "expert_mlp" not in implementations(("cuda",), static=True)
    assert target() == "cpu"
    with targeting("tpu"):
        assert target() == "tpu"
    assert target() == "cpu"


def test_choices_are_those_of_the_operators_own_tables():
    for platform in ("cpu", "gpu", "tpu"):
        found = choices(platform)
        for name, module in operators():
            own = {c.example: c for c in found if c.operator == name}
            assert set(export_forms().values()) >= {*_forms(module)}
            assert all(form in table(module) for form in _forms(module))
            if isinstance(module.EXPORT, str):
                assert own["export"].implementation == module.EXPORT
            for example, arguments in getattr(module, "EXAMPLES", {}).items():
                assert own[example].implementation == module.choose(platform, *arguments)
                assert own[example].reason == table(module)[own[example].implementation]
                assert own[example].reason
    assert {c.implementation for c in choices("tpu")} >= {"ragged", "dense"}


def _forms(module):
    return module.EXPORT.values() if isinstance(module.EXPORT, dict) else [module.EXPORT]
