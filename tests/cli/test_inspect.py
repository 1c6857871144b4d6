"""`pangu-jax inspect`: configuration, counts and memory, of whole folders and of bare configs."""

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import forecaster, store
from pangu_jax.checkpoint.hf import named, write_keys
from pangu_jax.cli.main import main
from pangu_jax.core.spec import abstract, count
from pangu_jax.models import presets, timepro

GOLDEN = Path(__file__).parents[1] / "golden"


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["inspect", *map(str, arguments)])
    return end.value.code


def inspected(path, capsys):
    assert call(path, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_published_model_from_its_configuration_alone(tmp_path, capsys):
    keys = write_keys(presets.pangu_pro_moe(), named("pangu-pro-moe"))
    (tmp_path / "config.json").write_text(json.dumps(keys))
    found = inspected(tmp_path, capsys)
    assert found["parameters"] == 71_988_781_056 and found["active"] == 16_498_139_136
    assert found["bytes"]["bfloat16"] == 2 * 71_988_781_056
    # 48 layers, 8 kv heads of 128, keys and values
    assert found["cache_bytes_per_token"]["bfloat16"] == 48 * 2 * 8 * 128 * 2
    assert found["files"] is None
    assert call(tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "71,988,781,056 (71.99 B)" in text and "16,498,139,136" in text
    assert "8 of 64 experts of 1,344 in 8 groups" in text and "the configuration alone" in text


@pytest.mark.parametrize("case", ["llama3", "qwen3_moe_fused", "pangu_embedded"])
def test_a_folder_with_tensors(case, capsys):
    found = inspected(GOLDEN / case, capsys)
    assert found["files"]["files"] == 1 and found["files"]["tensors"] > 10
    assert sum(run["layers"] for run in found["runs"]) == found["layers"]
    assert call(GOLDEN / case) == 0
    assert "1 file" in capsys.readouterr().out


def test_a_gguf_file_is_read_where_it_lies(tmp_path, capsys):
    tool = Path(__file__).parents[2] / "tools" / "make_gguf.py"
    spec = importlib.util.spec_from_file_location("make_gguf", tool)
    make_gguf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_gguf)
    make_gguf.write(GOLDEN / "llama3", tmp_path / "m.gguf", kind="BF16")
    found, folder = inspected(tmp_path / "m.gguf", capsys), inspected(GOLDEN / "llama3", capsys)
    files = found.pop("files")
    del folder["files"]
    assert found == folder and files["types"] == ["BF16", "F32"] and files["files"] == 1
    assert call(tmp_path / "m.gguf", "--verify") == 2
    assert "is a GGUF file" in capsys.readouterr().err


def test_a_run_folder_says_its_steps(tmp_path, capsys):
    store.save_model(presets.moge_tiny(), tmp_path)
    assert inspected(tmp_path, capsys)["files"] is None
    for step in (10, 9):
        (tmp_path / store.CHECKPOINTS / str(step)).mkdir(parents=True)
    assert inspected(tmp_path, capsys)["files"] == {"steps": [9, 10]}


def test_what_is_wrong_is_one_sentence(tmp_path, capsys):
    assert call(tmp_path / "nothing") == 2
    shutil.copytree(GOLDEN / "llama2", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert call(tmp_path / "cut") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "is no checkpoint" in errors[0] and "model.safetensors" in errors[1]


def test_verify_says_what_was_found_and_fails_where_nothing_can_be_told(tmp_path, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / "llama2", folder)
    assert call(folder, "--verify") == 2
    found = capsys.readouterr()
    assert "structure: 21 tensors in 1 file fit" in found.out
    assert "came without checksums" in found.err.splitlines()[-1]
    file = folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n{digest}  gone\n")
    assert call(folder, "--verify") == 0
    found = capsys.readouterr().out
    assert "checksums: right for model.safetensors" in found and "checksums are: gone" in found
    assert call(folder, "--verify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verified"] == ["model.safetensors"]
    (folder / "SHA256SUMS").write_text(f"{digest[::-1]}  model.safetensors\n")
    assert call(folder, "--verify") == 2
    assert "model.safetensors differs" in capsys.readouterr().err.splitlines()[-1]


def test_verify_is_for_hugging_face_folders(tmp_path, capsys):
    store.save_model(presets.moge_tiny(), tmp_path)
    assert call(tmp_path, "--verify") == 2
    assert "is a run of ours" in capsys.readouterr().err


def test_a_head_that_differs_from_a_tied_embedding_is_counted(tmp_path, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / "qwen3", folder)
    tensors = load_file(folder / "model.safetensors")
    before = inspected(folder, capsys)
    save_file(
        {**tensors, "lm_head.weight": -tensors["model.embed_tokens.weight"]},
        folder / "model.safetensors",
    )
    after = inspected(folder, capsys)
    assert before["tied"] and not after["tied"]
    assert after["parameters"] - before["parameters"] == 48 * 32


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b"])
def test_names_that_no_folder_can_have_are_one_sentence(name, capsys):
    assert call(name) == 2
    assert "is no checkpoint" in capsys.readouterr().err


TIMEPRO = timepro.TimeProConfig(16, 4, 1, 16, 8, 8)


def test_an_encoder_says_how_its_vectors_are_made(encoder_folder, capsys):
    found = inspected(encoder_folder, capsys)
    assert (found["kind"], found["family"], found["layers"]) == ("encoder", "bert", 2)
    made = {name: found[name] for name in ("pooling", "normalize", "text_length", "classes")}
    assert made == {"pooling": "mean", "normalize": True, "text_length": 12, "classes": 0}
    assert call(encoder_folder) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "vectors mean, scaled to length 1, of texts of at most 12 tokens" in text


def test_an_embedder_says_how_its_vectors_are_made(tmp_path, capsys):
    with np.load(GOLDEN / "nv_embed.npz") as golden:
        (tmp_path / "config.json").write_text(str(golden["config"]))
    found = inspected(tmp_path, capsys)
    assert (found["kind"], found["causal"], found["latent"]["latents"]) == ("embedder", False, 6)
    assert call(tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "vectors mean, scaled to length 1, of texts of at most 128 tokens" in text
    assert "attention bidirectional" in text and "latent 6, looked up by 3 heads" in text


def test_a_run_of_another_kind_of_model(tmp_path, capsys):
    store.save_model(TIMEPRO, tmp_path)
    (tmp_path / store.CHECKPOINTS / "7").mkdir(parents=True)
    found = inspected(tmp_path, capsys)
    assert (found["kind"], found["family"]) == ("timepro", "run folder")
    assert found["config"]["horizon"] == 4
    assert found["parameters"] == count(timepro.spec(TIMEPRO)) and found["files"] == {"steps": [7]}
    assert found["bytes"]["float32"] == 4 * found["parameters"]
    assert call(tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "kind timepro" in text and "look_back 16, horizon 4" in text and "steps 7" in text
    assert inspected(GOLDEN / "llama2", capsys)["kind"] == "decoder"


def test_a_forecaster_is_a_timepro_with_its_columns(tmp_path, capsys):
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract(timepro.spec(TIMEPRO)))
    cfg = forecaster.ForecasterConfig(
        model=TIMEPRO, names=("a", "b"), mean=(1.0, 2.0), std=(1.0, 3.0), step_count=3600,
        step_unit="s", month_end=False, seeds=(0, 5), coverage=0.9, measured_coverage=0.9,
        trained_on="load.csv",
    )  # fmt: skip
    forecaster.save(forecaster.Forecaster(cfg, [zeros] * 2, np.ones((4, 2))), tmp_path)
    found = inspected(tmp_path, capsys)
    assert (found["kind"], found["family"]) == ("timepro", "forecaster of pangu-jax forecast")
    assert found["files"] == {"seeds": [0, 5], "columns": ["a", "b"], "trained_on": "load.csv"}
    assert call(tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "parameters of 2 seeds, trained on the 2 columns of load.csv" in text
    assert call(tmp_path, "--verify") == 2
    assert "is a forecaster, whose checksum is" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["perceiver", 3, ["decoder"]])
def test_a_kind_that_is_not_known_is_one_sentence(kind, tmp_path, capsys):
    (tmp_path / store.MODEL).write_text(json.dumps({"kind": kind}))
    assert call(tmp_path) == 2
    assert capsys.readouterr().err.endswith(
        f"model.json names the kind of model {kind!r}; "
        "known: decoder, encoder, embedder, thinker, timepro\n"
    )
