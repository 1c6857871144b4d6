"""A folder is what its manifest says, or it is refused in one sentence; inputs are checked."""

import json

import numpy as np
import pytest

from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.export import artifact as kept
from pangu_jax.export import parity, program
from pangu_jax.export.onnx.write import export
from pangu_jax.export.run import check, open_runner

pytestmark = pytest.mark.onnx


def linear(params, x, count):
    return {"y": x @ params["w"] + params["b"], "n": count + 1}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(40, 30)).astype(np.float32), "b": np.ones(30, np.float32)}
    inputs = {"x": rng.normal(size=(2, 40)).astype(np.float32), "count": np.array([1, 2], np.int32)}
    bundle = program.single(linear, params, inputs)
    with kept.new_folder(tmp_path / "out") as folder:
        export(bundle, folder, external=True)
    return tmp_path / "out"


def test_an_artifact_comes_back_and_checks_itself(folder):
    artifact = kept.load(folder)
    assert artifact.target == "onnx"
    assert artifact.versions["onnx_opset"] == "17"
    (made,) = artifact.programs
    assert [t.name for t in made.inputs] == ["x", "count"]
    assert made.inputs[0] == kept.Tensor("x", (2, 40), "float32")
    assert made.operators == {"Add": 2, "MatMul": 1}
    assert sorted(artifact.files) == ["forward.onnx", "samples.npz", "weights.bin"]
    _, rows = check(folder)
    assert {row.output for row in rows} == {"y", "n"}
    assert max(row.relative for row in rows) < 1e-6


@pytest.mark.parametrize("name", ["forward.onnx", "weights.bin", "samples.npz"])
def test_a_changed_or_cut_file_is_refused(folder, name):
    path = folder / name
    raw = path.read_bytes()
    for damaged in (raw[:-7], raw[: len(raw) // 2] + b"\x00\x01" + raw[len(raw) // 2 + 2 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name} is damaged"):
            open_runner(folder)
    path.unlink()
    with pytest.raises(InputError, match=rf"lacks {name}.*not whole"):
        open_runner(folder)


def test_a_manifest_of_the_older_name_is_read_and_its_folder_replaced(folder):
    (folder / kept.MANIFEST).rename(folder / kept.OLD_MANIFEST)
    assert check(folder)[0].target == "onnx"
    with kept.new_folder(folder) as new:
        (new / "x").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["x"]


def test_a_changed_manifest_is_refused(folder):
    path = folder / kept.MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"float32"', '"float16"', 1))
    with pytest.raises(InputError, match=r"seal does not fit"):
        kept.load(folder)
    path.write_text(text[:-30])
    with pytest.raises(InputError, match=r"is not JSON"):
        kept.load(folder)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"seal"):
        kept.load(folder)
    values = json.loads(text)
    del values["seal"], values["programs"]
    path.write_text(json.dumps({**values, "seal": json_digest(values)}))
    with pytest.raises(InputError, match=r"lacks the field 'programs'"):
        kept.load(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"is no artifact"):
        kept.load(folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "forward lacks the input 'x' float32 .2, 40."),
        ({"x": np.ones((3, 40), np.float32)}, r"input 'x' has shape \(3, 40\), it must be float32"),
        ({"x": np.ones(40, np.float32)}, r"input 'x' has shape \(40,\), it must be"),
        ({"x": np.ones((2, 40))}, "input 'x' is float64, it must be float32"),
        ({"x": np.ones((2, 40), np.float32), "count": np.ones(2, np.int64)}, "'count' is int64"),
        ({"z": np.ones(2)}, "forward has no input 'z'; it takes x, count"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(folder, given, said):
    _, run = open_runner(folder)
    with pytest.raises(InputError, match=said):
        run("forward", given)
    with pytest.raises(InputError, match=r"there is no program 'back'; the artifact has forward"):
        run("back", given)


@pytest.mark.parametrize(
    ("name", "beside", "fits", "outside"),
    [("length", "tokens", (1, 8), (0, 9)), ("position", "past_key_0", (0, 7), (-1, 8))],
)
def test_a_row_longer_than_a_decoders_program_is_refused(name, beside, fits, outside):
    inputs = kept.Tensor(beside, ("b", 8), "float32"), kept.Tensor(name, ("b",), "int32")
    program = kept.Compiled("part", "part.onnx", inputs, (), {})
    given = {beside: np.zeros((2, 8), np.float32)}
    for place in (*fits, *outside):
        places = {name: np.array([fits[0], place], np.int32)}
        if place in fits:
            assert kept.fit_inputs(program, given | places).keys() == {name, beside}
            continue
        said = f"^input '{name}' has {place}; part takes {fits[0]} to {fits[1]}$"
        with pytest.raises(InputError, match=said):
            kept.fit_inputs(program, given | places)


def test_an_unknown_provider_is_refused(folder):
    _, run = open_runner(folder, provider="MoonExecutionProvider")
    with pytest.raises(InputError, match=r"no MoonExecutionProvider here; it has .*CPU"):
        run(None, {"x": np.ones((2, 40), np.float32), "count": np.ones(2, np.int32)})


def test_only_an_artifact_or_an_empty_folder_is_replaced(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    with pytest.raises(InputError, match=r"no artifact of ours"), kept.new_folder(other):
        pass
    assert (other / "precious.txt").exists()
    with pytest.raises(KeyError), kept.new_folder(folder) as new:
        (new / "half").write_text("x")
        raise KeyError
    assert kept.load(folder).target == "onnx"
    with kept.new_folder(folder) as new:
        (new / "file").write_text("x")
    assert [p.name for p in folder.iterdir()] == ["file"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]


def again(folder, **fields):
    """Seals a manifest in which something was changed."""
    path = folder / kept.MANIFEST
    values = {**json.loads(path.read_text()), **fields}
    values.pop("seal")
    path.write_text(json.dumps({**values, "seal": json_digest(values)}))


def test_a_manifest_names_files_of_its_folder_with_checksums(folder, tmp_path):
    listed = json.loads((folder / kept.MANIFEST).read_text())["files"]
    secret = tmp_path / "secret"
    secret.write_text("x")
    for name in ("../secret", str(secret), "..", ".", ""):
        again(folder, files={**listed, name: sha256(secret)})
        with pytest.raises(InputError, match="names a file outside its folder"):
            kept.load(folder)
    again(folder, files=listed, weights="../secret")
    with pytest.raises(InputError, match=r"has no checksum of '../secret', which it uses"):
        kept.load(folder)
    again(folder, weights="weights.bin")
    kept.load(folder)
    (folder / "weights.bin").rename(tmp_path / "moved")
    (folder / "weights.bin").symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=r"weights.bin is a link"):
        kept.load(folder)


def test_files_of_the_users_own_are_let_be_and_never_read(folder):
    for name in ("README.md", "forward.om", "results.npz"):
        (folder / name).write_text("x")
    assert "README.md" not in kept.load(folder).files


def test_types_that_are_none_are_refused(folder):
    (made,) = json.loads((folder / kept.MANIFEST).read_text())["programs"]
    for dtype in ("float33", "object", "U3", ""):
        inputs = [{**made["inputs"][0], "dtype": dtype}, made["inputs"][1]]
        again(folder, programs=[{**made, "inputs": inputs}])
        with pytest.raises(InputError, match="x must be of a type such as float32"):
            kept.load(folder)


def test_samples_that_were_sealed_again_are_checked(folder):
    listed = json.loads((folder / kept.MANIFEST).read_text())["files"]
    path = folder / kept.SAMPLES
    raw = path.read_bytes()
    results = {"forward/a/out/y": np.ones((2, 30)), "forward/a/out/n": np.ones(2)}
    for content, said in (
        (raw[: len(raw) // 2], r"cannot read .*samples.npz"),
        ({"x": np.ones(2)}, r"holds 'x', not program/sample"),
        ({"back/a/in/x": np.ones(2)}, r"there is no program 'back'"),
        ({"forward/a/out/y": np.ones(2)}, r"forward lacks the result 'n'"),
        ({**results, "forward/a/out/z": np.ones(2)}, r"does not give, 'z'"),
        ({**results, "forward/a/out/y": np.array(["one"])}, r"'y' .* it must be of numbers"),
        (results, r"forward lacks the input 'x'"),
        ({}, r"samples\.npz holds no samples"),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
        again(folder, files={**listed, kept.SAMPLES: sha256(path)})
        with pytest.raises(InputError, match=said):
            check(folder)


def test_inputs_are_read_from_plain_npz_only(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.ones(2))
    assert kept.load_npz(path)["x"].shape == (2,)
    np.save(tmp_path / "x.npy", np.ones(2))
    for name, said in (("x.npy", "is one array"), ("none.npz", "cannot read"), ("t.npz", "cannot")):
        (tmp_path / "t.npz").write_text("no archive")
        with pytest.raises(InputError, match=said):
            kept.load_npz(tmp_path / name)
    np.savez(tmp_path / "o.npz", x=np.array([{}], object))
    with pytest.raises(InputError, match=r"cannot read"):
        kept.load_npz(tmp_path / "o.npz")


def test_parity_counts_the_worst_and_refuses_above_the_tolerance():
    wanted = {"key_0": np.array([1.0, -4.0]), "key_1": np.array([2.0]), "ids": np.array([1, 2])}
    found = {"key_0": np.array([1.0, -4.4]), "key_1": np.array([2.1]), "ids": np.array([1, 2])}
    rows = {row.output: row for row in parity.compare("p", "s", wanted, found)}
    assert rows["key"].absolute == pytest.approx(0.4)
    assert rows["key"].relative == pytest.approx(0.1)
    assert rows["ids"].relative == 0
    parity.require(rows.values(), 0.2)
    with pytest.raises(InputError, match=r"key on the s sample by 1.0e-01.*tolerance 5e-02"):
        parity.require(rows.values(), 0.05)
    assert parity.errors(np.array([1, 2]), np.array([1, 3])) == (np.inf, np.inf)
    nan = np.array([np.nan, 1.0])
    assert parity.errors(nan, nan) == (np.inf, np.inf)  # else a model of NaN has error 0
    assert parity.errors(np.zeros(2), nan)[1] == parity.errors(nan, np.zeros(2))[1] == np.inf
    masked = np.array([-np.inf, 1.0])
    assert parity.errors(masked, masked) == (0, 0) and parity.errors(masked, -masked)[1] == np.inf
    with pytest.raises(InputError, match="x on the s sample in NaN, an infinity or a whole number"):
        bad = parity.compare("p", "s", {"x": nan, "y": masked}, {"x": nan, "y": masked})
        parity.require([*bad, parity.Row("p", "s", "z", 0.1, 0.1)], 0.2)
    assert parity.errors(np.zeros(2), np.ones(2))[1] == np.inf
    with pytest.raises(InputError, match=r"nothing|tolerance"):
        parity.require([parity.Row("p", "s", "x", 0.0, float("nan"))], 1.0)
    with pytest.raises(InputError, match=r"gave no ids"):
        parity.compare("p", "s", wanted, {"key_0": wanted["key_0"], "key_1": wanted["key_1"]})
    assert "max rel" in parity.table(list(rows.values()))
