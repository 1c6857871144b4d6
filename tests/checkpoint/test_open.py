"""Opening a run folder and a Hugging Face folder by the same call."""

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax.numpy as jnp
import pytest

from pangu_jax.checkpoint import hf, store
from pangu_jax.checkpoint.open import TRAINERS, checkpoint_format, open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models.timepro_config import TimeProConfig

LLAMA = Path(__file__).parents[1] / "golden" / "llama2"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    params, cfg = hf.load(LLAMA, dtype=jnp.float32)
    store.save_model(cfg, folder)
    (folder / "config.json").write_text("{}")  # of the run, as `pangu-jax train` writes it
    with store.Store(folder) as checkpoints:
        checkpoints.save(3, params, {"step": jnp.int32(3)})
    return folder


def test_both_kinds_give_the_same_parameters_and_configuration(run_folder):
    ours, cfg, _ = open_checkpoint(run_folder)
    theirs, same, _ = open_checkpoint(str(LLAMA), dtype=jnp.float32)
    assert cfg == same
    chex.assert_trees_all_equal(ours, theirs)


def test_the_type_of_the_parameters_may_be_given(run_folder):
    for folder in (run_folder, LLAMA):
        leaves = flatten(open_checkpoint(folder, dtype=jnp.bfloat16)[0]).values()
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_only_a_run_of_ours_without_a_tokenizer_is_of_bytes(run_folder):
    assert open_checkpoint(run_folder)[2] == "bytes"
    assert open_checkpoint(LLAMA)[2] == str(LLAMA)  # which load_tokenizer refuses by name
    (run_folder / "tokenizer.json").write_text("{}")
    assert open_checkpoint(run_folder)[2] == str(run_folder)


@pytest.mark.parametrize(
    "said, own",
    [
        ({"config.json": {"tokenizer": "bytes"}}, False),
        ({"config.json": {"tokenizer": "tokenizer.json"}}, True),
        ({"config.json": {"tokenizer": "words"}, "latent.json": {"tokenizer": "bytes"}}, False),
        ({"config.json": {"tokenizer": "words"}, "latent.json": {}}, False),  # older than the entry
        ({"config.json": {}, "latent.json": {"tokenizer": "1a2b"}}, True),
    ],
)
def test_a_run_that_lost_its_tokenizer_is_not_of_bytes(tmp_path, monkeypatch, said, own):
    for name, content in said.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / store.MODEL).touch()
    monkeypatch.setattr(store, "restore_params", lambda *_, **__: (None, None))
    assert open_checkpoint(tmp_path)[2] == (str(tmp_path) if own else "bytes")


@pytest.mark.parametrize("command, setting", [("rl", "reward"), ("distill", "student")])
@pytest.mark.parametrize("tokenizer", [None, "tokenizer.json", "bytes"])
def test_a_run_whose_model_is_in_a_folder_of_its_own_is_refused(
    run_folder, tmp_path, command, setting, tokenizer
):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    settings = {setting: "x", "tokenizer": tokenizer}
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as error:
        open_checkpoint(run)
    assert f"{run} holds a run of `pangu-jax {command}` that has not ended" in str(error.value)
    (run / "model").mkdir()
    with pytest.raises(InputError) as error:
        open_checkpoint(run)
    assert str(error.value).endswith(
        f"`pangu-jax {command}`, whose model is {run}/model; give that"
    )
    assert checkpoint_format(run) == "run"  # which `inspect` shows


def test_runs_with_a_model_of_their_own_are_known_by_a_setting_of_no_other():
    from pangu_jax.cli.options import distill, latent_train, rl, train

    commands = {"train": train, "latent train": latent_train, "distill": distill, "rl": rl}
    for name, module in commands.items():
        settings = {field.name for field in dataclasses.fields(module.Options)}
        found = {TRAINERS[setting] for setting in TRAINERS.keys() & settings}
        assert found == ({name} if name in TRAINERS.values() else set())


@pytest.mark.parametrize("name", ["model.json", "config.json"])
def test_a_link_to_nothing_is_no_other_kind_of_folder(tmp_path, name):
    (tmp_path / name).symlink_to("blob")
    with pytest.raises(InputError, match=rf"{name}(: No such file| is a link to blob, which is)"):
        open_checkpoint(tmp_path)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        open_checkpoint(tmp_path)


def test_another_kind_of_model_than_was_asked_for_is_named_before_its_tensors_are_read(
    run_folder, tmp_path
):
    store.save_model(TimeProConfig(16, 4, 1, 16, 8, 8), tmp_path)  # and no checkpoint
    with pytest.raises(InputError) as error:
        open_checkpoint(tmp_path, kind="decoder", by="`pangu-jax generate`")
    assert str(error.value) == f"{tmp_path} holds a timepro; `pangu-jax generate` takes a decoder"
    for folder in (run_folder, LLAMA):
        with pytest.raises(InputError, match="holds a decoder; this call takes an encoder"):
            open_checkpoint(folder, kind="encoder")
        assert open_checkpoint(folder, kind="decoder")[1] == open_checkpoint(folder)[1]


def test_a_forecaster_is_known_where_nothing_else_is_beside_it(tmp_path):
    (tmp_path / "forecaster.json").write_text("{}")
    assert checkpoint_format(tmp_path) == "forecaster"
    with pytest.raises(InputError, match="holds a forecaster, which is for `pangu-jax forecast`"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="holds a forecaster; this call takes a decoder"):
        open_checkpoint(tmp_path, kind="decoder")
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_format(tmp_path) == "hf"
