"""Files of a checkpoint: which are read, which links are followed, and how they are written."""

import json
import os
import shutil
import stat
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, safetensors_files
from pangu_jax.checkpoint.safetensors_files import PendingTensor
from pangu_jax.core.errors import InputError

LLAMA = Path(__file__).parents[1] / "golden" / "llama2"


def value(folder):
    (stored,) = safetensors_files.find(folder).values()
    return stored.view()[0]


def index(folder, names):
    (folder / safetensors_files.INDEX).write_text(json.dumps({"weight_map": names}))


def test_the_single_file_comes_before_an_index(tmp_path):
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "old.safetensors")
    index(tmp_path, {"x": "old.safetensors"})
    assert value(tmp_path) == 1
    save_file({"x": np.full(1, 2, np.float32)}, tmp_path / safetensors_files.SINGLE)
    assert value(tmp_path) == 2
    (tmp_path / "old.safetensors").unlink()
    assert value(tmp_path) == 2


@pytest.mark.parametrize("name", ["x" * 5000, "gone", "pipe"])
def test_shards_that_cannot_be_opened_are_one_sentence(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    index(tmp_path, {"x": name})
    with pytest.raises(
        InputError, match=r"(x|gone|pipe)(\.\.\.)?( is missing|: it is no ordinary)"
    ):
        safetensors_files.find(tmp_path)


def test_a_pipe_in_place_of_the_weights_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / safetensors_files.SINGLE)
    with pytest.raises(InputError, match=r"model\.safetensors: it is no ordinary file"):
        safetensors_files.find(tmp_path)


@pytest.fixture
def hub(tmp_path):
    """A snapshot as the Hugging Face cache has it."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, name in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        blob = repository / "blobs" / str(i)
        blob.write_bytes((LLAMA / name).read_bytes() if (LLAMA / name).exists() else b"{}")
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    return snapshot


def test_links_of_the_hub_are_followed(hub, tmp_path):
    (tmp_path / "link").symlink_to(hub)
    for folder in (hub, tmp_path / "link"):
        hf.save(*hf.view(folder), tmp_path / "out", family="llama", source=folder)
        assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
        assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("where", ["hub", "plain"])
def test_links_that_lead_elsewhere_are_refused(hub, tmp_path, name, where):
    folder = hub
    if where == "plain":
        folder = tmp_path / "plain"
        shutil.copytree(hub, folder)
    (folder / name).unlink()
    outside = tmp_path / "secret"
    outside.write_bytes((LLAMA / name).read_bytes() if (LLAMA / name).exists() else b"mine")
    (folder / name).symlink_to(outside)
    with pytest.raises(InputError, match=rf"{name} is a link to .*secret, outside"):
        hf.save(*hf.view(folder), tmp_path / "out", family="llama", source=folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_to_nothing_are_neither_absent_nor_passed_over(hub, tmp_path, name):
    (hub / name).resolve().unlink()  # as in a copy of the snapshot without its blobs
    old = LLAMA / "model.safetensors"
    shutil.copy(old, hub / "old.safetensors")  # an index does not step in for the file
    index(hub, dict.fromkeys(load_file(old), "old.safetensors"))
    with pytest.raises(InputError, match=rf"{name} is a link to .*blobs/\d, which is not there"):
        hf.save(*hf.view(hub), tmp_path / "out", family="llama", source=hub)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_a_link_to_nothing_is_named(tmp_path):
    index(tmp_path, {"x": "a.safetensors"})
    (tmp_path / "a.safetensors").symlink_to("b.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors is a link to b\.safetensors, which is"):
        safetensors_files.find(tmp_path)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / safetensors_files.SINGLE).symlink_to("a.safetensors")
    assert value(tmp_path) == 1


def test_files_are_as_the_library_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"b": (3,), "a": (2, 5), "none": (0, 4), "one": (), "half": (6,)}
    kinds = {"b": ml_dtypes.bfloat16, "half": np.float16}
    arrays = {
        n: np.asarray(rng.normal(size=s), kinds.get(n, np.float32)) for n, s in shapes.items()
    }
    made = []

    def plan(name, array):
        return PendingTensor(array.dtype, array.shape, lambda: made.append(name) or array)

    old = os.umask(0o027)
    try:
        safetensors_files.write(
            tmp_path, [{name: plan(name, array) for name, array in arrays.items()}]
        )
    finally:
        os.umask(old)
    path = tmp_path / safetensors_files.SINGLE
    found = load_file(path)
    assert found.keys() == arrays.keys() == set(made) and len(made) == len(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    save_file(arrays, tmp_path / "library.safetensors", metadata={"format": "pt"})
    for file in (path, tmp_path / "library.safetensors"):  # each tensor is aligned
        for stored in safetensors_files.header(file).values():
            assert stored.offset % safetensors_files.DTYPES[stored.dtype].itemsize == 0


def test_every_tensor_of_a_file_is_aligned_to_its_type(tmp_path):
    sizes = {"a": np.float16, "b": np.float32, "c": np.float16, "d": np.float32}
    tensors = {n: np.ones(3, t) for n, t in sizes.items()}
    planned = {n: PendingTensor(x.dtype, x.shape, lambda x=x: x) for n, x in tensors.items()}
    safetensors_files.write(tmp_path, [planned])
    raw = (tmp_path / safetensors_files.SINGLE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + size])
    for name, dtype in sizes.items():
        assert (8 + size + head[name]["data_offsets"][0]) % np.dtype(dtype).itemsize == 0
