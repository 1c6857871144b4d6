"""Folders against themselves and against the checksums they came with."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import safetensors_files
from pangu_jax.checkpoint.verify import check_structure, check_sums
from pangu_jax.core.errors import InputError

LLAMA = Path(__file__).parents[1] / "golden" / "llama2"
FILES = ["config.json", "model.safetensors"]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        shutil.copy(LLAMA / name, tmp_path / name)
    return tmp_path


def digest(path, kind="sha256"):
    return hashlib.new(kind, path.read_bytes()).hexdigest()


FORMS = {
    "SHA256SUMS": "{hex}  {name}",
    "sha256sum.txt": "{hex} *{name}",
    "checksums.txt": "# sums\n{hex} {name}\n",
    "checklist.chk": "{hex} *./{name}",
    "sha512sums": "{sha512}  {name}",
    "CHECKSUM": "SHA256 ({name}) = {hex}",
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_in_their_usual_forms(folder, form):
    def line(name):
        sums = {"hex": digest(folder / name), "sha512": digest(folder / name, "sha512")}
        return FORMS[form].format(name=name, **sums) + "\n"

    text = "".join(line(name) for name in FILES)
    (folder / form).write_text(text + line("config.json").replace("config.json", "code/a.py"))
    seen = []
    assert check_sums(folder, seen.append) == (FILES, ["code/a.py"]) and seen == FILES
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(InputError, match=r"not what was published: model\.safetensors differs"):
        check_sums(folder)


@pytest.mark.parametrize("form", ["{hex}\n", "{hex}  model.safetensors", "{hex}  /tmp/other"])
def test_a_sum_beside_its_file(folder, form):
    sums = folder / "model.safetensors.sha256"
    sums.write_text(form.format(hex=digest(folder / "model.safetensors").upper()))
    assert check_sums(folder) == (["model.safetensors"], [])
    sums.write_text(form.format(hex="0" * 64))
    with pytest.raises(InputError, match=r"model\.safetensors differs from its sha256"):
        check_sums(folder)


def test_the_cache_of_the_hub_names_its_blobs_by_their_sums(folder):
    snapshot = folder / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = folder / "models--a--b" / "blobs"
    blobs.mkdir()
    shutil.copy(LLAMA / "config.json", snapshot / "config.json")
    name = digest(folder / "model.safetensors")
    shutil.copy(folder / "model.safetensors", blobs / name)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{name}")
    assert check_sums(snapshot) == (["model.safetensors"], [])
    (blobs / name).write_bytes((blobs / name).read_bytes().replace(b"\x00", b"\x01", 1))
    with pytest.raises(InputError):
        check_sums(snapshot)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (None, "", "came without checksums"),
        ("SHA256SUMS", "", "came without checksums"),
        ("SHA256SUMS", "hello\n", "no list of checksums: 'hello'"),
        ("SHA256SUMS", "0" * 64, "no list of checksums"),
        ("SHA256SUMS", "0" * 63 + "  config.json", "no list of checksums"),
        ("SHA256SUMS", "0" * 64 + "  ../x", "outside its folder: '../x'"),
        ("SHA256SUMS", "0" * 64 + "  /etc/passwd", "outside its folder"),
        ("config.json.sha256", "CONFIG", "model.safetensors has no checksum"),
        ("SHA256SUMS", f"{'0' * 64}  a\n{'1' * 64}  a", "another checksum for a"),
    ],
)
def test_what_cannot_be_verified_is_one_sentence(folder, name, text, words):
    if name is not None:
        (folder / name).write_text(text.replace("CONFIG", digest(folder / "config.json")))
    with pytest.raises(InputError, match=words):
        check_sums(folder)


def test_a_list_outside_the_folder_is_not_read(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("a secret")
    (folder / "SHA256SUMS").symlink_to(outside)
    with pytest.raises(InputError, match=r"SHA256SUMS is a link to .*, outside") as error:
        check_sums(folder)
    assert "a secret" not in str(error.value)


def test_the_structure_of_a_folder(folder):
    assert check_structure(folder) == (
        "21 tensors in 1 file fit config.json; all values are finite"
    )
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}

    def check(**changes):
        found = {"weight_map": {k: v for k, v in {**weight_map, **changes}.items() if v}}
        (folder / safetensors_files.INDEX).write_text(json.dumps(found))
        return check_structure(folder)

    assert check() == "21 tensors in 2 files fit config.json; all values are finite"
    with pytest.raises(InputError, match=rf"a\.safetensors holds {names[0]}, .* has b\.safet"):
        check(**{names[0]: "b.safetensors"})
    with pytest.raises(InputError, match=rf"holds {names[0]}, which .* has nowhere"):
        check(**{names[0]: None})
    tensors[names[3]].reshape(-1)[0] = np.nan
    save_file({name: tensors[name] for name in names[:9]}, folder / "a.safetensors")
    with pytest.raises(InputError, match=f"{names[3]} holds NaN"):
        check()
    save_file({name: tensors[name] for name in names[:3]}, folder / "a.safetensors")
    with pytest.raises(InputError, match=f"tensor {names[3]} is not in"):
        check()
