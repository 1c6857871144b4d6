"""`pj.export` of a run of a latent method: what thinks is exported as it thinks, or refused."""

import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import pytest

import pangu_jax as pj
from pangu_jax.checkpoint import store
from pangu_jax.core.config import load_config, save_config
from pangu_jax.export import decoder
from pangu_jax.models import registry
from pangu_jax.models.thinker import ThinkerConfig, from_decoder
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.train import RUN, Trained
from pangu_jax.task.export import _checkpoint, export_folder
from pangu_jax.task.job import Job
from pangu_jax.task.options import ExportOptions
from pangu_jax.task.watch import SILENT

SMALL = {"target": "stablehlo", "profiles": "8", "cache": 16, "batch": 1}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run whose model thinks twice, in projected states, and runs its layer in two turns."""
    folder = tmp_path_factory.mktemp("latent")
    params, plain = store.restore_params(tiny_run)
    cfg = ThinkerConfig(plain, turns=2, projection=8)
    store.save_model(cfg, folder)
    with store.Store(folder) as checkpoints:
        params = from_decoder(params, cfg, key=jax.random.key(0))
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    save_config(Trained("codi", Phase(1, slots=2), "mult1x1", None, 1, 2, 4), folder / RUN)
    return folder


def test_a_loaded_thinker_is_exported_as_its_folder_is(run, tmp_path, caplog):
    model = pj.load(run)
    assert model.kind == registry.kind_of(model.cfg).name == "thinker"
    with caplog.at_level(logging.WARNING, "pangu_jax"):
        found = pj.export(model, tmp_path / "loaded", **SMALL)
    assert "stopped at step 1 of 2" in caplog.text
    assert found.facts["filled"] == 3 and found.facts["mark"] == 260
    assert any("2 thoughts, and what codi learned" in note for note in found.notes)
    names = {tensor.name for tensor in found.program("decode").outputs}
    assert {"key_0", "key_1"} <= names and "key_2" not in names  # a turn has its own cache
    want, compared = export_folder(run, tmp_path / "folder", ExportOptions(**SMALL))
    assert compared and dataclasses.replace(want, files=found.files) == found
    for name in ("weights.safetensors", "samples.npz"):  # inputs and jax's results; programs also
        assert want.files[name] == found.files[name]  # hold which lines they were traced from


@pytest.mark.parametrize("loaded", [True, False])
def test_a_thinker_that_is_not_to_think_is_refused(run, tiny_run, tmp_path, loaded):
    out, options = tmp_path / "out", ExportOptions(**SMALL, thoughts=False)
    with pytest.raises(pj.InputError, match=f"{run.name}0? holds a thinker, which is exported"):
        if loaded:
            pj.export(pj.load(run), out, **SMALL, thoughts=False)
        else:
            export_folder(run, out, options)
    elsewhere = dataclasses.replace(pj.load(run), path=str(tiny_run))  # which says no method
    with pytest.raises(pj.InputError, match=r"from a folder whose latent\.json says how"):
        pj.export(elsewhere, out, **SMALL)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "longest, profiles, made, told",
    [
        (None, None, 128, None),  # written before a run said it
        (20, None, 128, None),
        (150, None, 152, None),  # a token before the question, one after
        (150, "16", 16, "questions have up to 152 tokens, the longest profile 16"),
        (500, None, 400, "questions have up to 502 tokens, the longest profile 400"),  # max_length
    ],
)
def test_the_default_profile_takes_the_longest_question_of_a_run(
    run, tmp_path, longest, profiles, made, told
):
    known = load_config(Trained, run / RUN)
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    save_config(dataclasses.replace(known, longest_question=longest), tmp_path / RUN)
    options = ExportOptions(**{**SMALL, "cache": None, "profiles": profiles})
    bundle, _ = _checkpoint(Job(str(tmp_path), options, SILENT), None)
    assert bundle.facts["profiles"] == [made]
    said = [note for note in bundle.notes if "longest profile" in note]
    assert len(said) == (told is not None) and all(told in note for note in said)


def test_a_run_without_its_tokenizer_is_refused(run, tmp_path):
    model = pj.load(run)
    small = dataclasses.replace(model.cfg.decoder, vocab=200)
    other = dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, decoder=small))
    with pytest.raises(pj.InputError, match=r"bytes gives .* the id 260, .* ends at 199"):
        pj.export(other, tmp_path / "out", **SMALL)


def test_other_tasks_refuse_a_thinker(run, tmp_path):
    model = pj.load(run)
    for call in (
        lambda: pj.prune(model, tmp_path / "out", target="ffn=0.5", calib="stdlib"),
        lambda: pj.generate(model, ["a"]),
    ):
        with pytest.raises(pj.InputError, match="is of the kind thinker; this takes the kind dec"):
            call()


def test_the_decoder_of_a_run_is_exported_alone_without_its_thoughts(tiny_run, tmp_path):
    params, cfg = store.restore_params(tiny_run)
    store.save_model(cfg, tmp_path / "run")
    with store.Store(tmp_path / "run") as checkpoints:
        checkpoints.save(2, params, {"step": jnp.int32(2)})
    trained = Trained("coconut", Phase(2, slots=1), "mult1x1", None, 1, 2, 4)
    save_config(trained, tmp_path / "run" / RUN)
    model = pj.load(tmp_path / "run")
    found = pj.export(model, tmp_path / "out", **SMALL, thoughts=False)
    assert "filled" not in found.facts
    assert not any("thoughts" in note for note in found.notes)


@pytest.mark.parametrize("thoughts, gap", [(True, 5), (False, 0)])
def test_an_internalized_run_is_exported_with_its_gap(
    tiny_run, tmp_path, monkeypatch, thoughts, gap
):
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    phase = Phase(1, removed_steps=ALL, chain_room=5)
    save_config(Trained("icot", phase, "mult1x1", None, 1, 1, 4), tmp_path / RUN)
    asked, bundle = [], decoder.bundle
    take = lambda *args, gap, **more: asked.append(gap) or bundle(*args, gap=gap, **more)  # noqa: E731
    monkeypatch.setattr(decoder, "bundle", take)
    options = ExportOptions(**SMALL, thoughts=thoughts)
    found, _ = _checkpoint(Job(str(tmp_path), options, SILENT), None)
    assert asked == [gap]
    assert any("5 positions further on" in note for note in found.notes) == thoughts
