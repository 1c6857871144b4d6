"""The store of training checkpoints: whole or not at all, under another sharding, of this model."""

import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.quiet_logs import QuietLogs
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, timepro
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

HEADS = AttentionConfig(2, 1, 4)
# Two runs of different shapes, as after pruning.
CFG = decoder.DecoderConfig(
    16,
    8,
    (LayerConfig(HEADS, mlp=MlpConfig(8)), LayerConfig(HEADS, moe=MoEConfig(8, 4, 1, 4))),
)
SPEC = decoder.spec(CFG)


def values(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract(SPEC))


def rest(step):
    return {"step": jnp.int32(step), "opt_state": [jnp.full((3,), float(step))]}


@pytest.fixture
def folder(tmp_path):
    store.save_model(CFG, tmp_path)
    with store.Store(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, values(step), rest(step))
    return tmp_path


def test_the_latest_ones_stay_and_come_back_whole(folder):
    with store.Store(folder) as checkpoints:
        assert checkpoints.latest() == 3
        found, others = checkpoints.restore(3, abstract(SPEC), jax.eval_shape(lambda: rest(0)))
        chex.assert_trees_all_equal(found, values(3))
        chex.assert_trees_all_equal(others, rest(3))
        with pytest.raises(InputError, match="no checkpoint of step 1"):
            checkpoints.restore(1, abstract(SPEC))
        checkpoints.save(3, values(9), rest(9))  # a step that is there is left alone
        checkpoints.wait()
        chex.assert_trees_all_equal(checkpoints.restore(3, abstract(SPEC))[0], values(3))


def test_a_checkpoint_whose_deletion_is_cut_short_is_none(tmp_path, monkeypatch):
    """Killed after the first file: what still has a step's name is whole."""

    def killed(place, *_, **__):
        files = [path for path in Path(place).rglob("*") if path.is_file()]
        for path in files[:1]:
            path.unlink()

    with store.Store(tmp_path, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            for step in (1, 2):
                checkpoints.save(step, values(step), rest(step))
                checkpoints.wait()
        assert checkpoints.steps() == [2] and list((checkpoints.folder / store.DISCARDED).iterdir())
        chex.assert_trees_all_equal(checkpoints.restore(2, abstract(SPEC))[0], values(2))
    assert not (checkpoints.folder / store.DISCARDED).exists()


def test_what_is_saved_is_the_state_at_the_call(tmp_path, monkeypatch):
    """The loop donates the arrays while they are still being written."""

    def places(tree):
        return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = values()
    want = jax.tree.map(np.array, params)
    with store.Store(tmp_path) as checkpoints:
        handed, write = set(), checkpoints._manager.save

        def save(step, args):
            handed.update(places(args.params.item))
            return write(step, args=args)

        monkeypatch.setattr(checkpoints._manager, "save", save)
        checkpoints.save(1, params, rest(1))
        assert handed and not handed & places(params)
        for _ in range(3):
            params = bump(params)
        checkpoints.wait()
        chex.assert_trees_all_equal(checkpoints.restore(1, abstract(SPEC))[0], want)


@pytest.mark.parametrize("rules", ["fsdp", "expert"])
def test_it_restores_under_a_sharding_it_was_not_saved_under(folder, rules):
    where = Layout(make_mesh(**{rules: 4}, devices=jax.devices()[:4]), preset(rules))
    params, cfg = store.restore_params(folder, layout=where)
    assert cfg == CFG
    chex.assert_trees_all_equal(params, values(3))
    sizes = {n: {s.data.nbytes for s in x.addressable_shards} for n, x in flatten(params).items()}
    split = [n for n, x in flatten(params).items() if sizes[n] == {x.nbytes // 4}]
    assert any("experts" in name for name in split)


def test_parameters_alone_and_in_another_type(folder):
    params, _ = store.restore_params(folder, step=2, dtype=jnp.bfloat16)
    chex.assert_trees_all_equal(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), values(2)))


def test_a_checkpoint_of_another_model_is_refused_by_the_leaf(folder):
    other = decoder.DecoderConfig(16, 8, (LayerConfig(HEADS, mlp=MlpConfig(16)), CFG.layers[1]))
    store.save_model(other, folder)
    with pytest.raises(InputError, match=r"another model: runs/0/mlp/down/kernel has shape"):
        store.restore_params(folder)


def test_what_is_not_there_or_damaged_is_said(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"model\.json"):
        store.restore_params(empty)
    store.save_model(CFG, empty)
    with pytest.raises(InputError, match="has no folder checkpoints"):
        store.restore_params(empty)
    (empty / store.CHECKPOINTS).mkdir()
    with pytest.raises(InputError, match="no finished checkpoint"):
        store.restore_params(empty)
    (empty / store.MODEL).write_text(json.dumps({"vocab": 16}))
    with pytest.raises(InputError, match=r"model\.json"):
        store.restore_params(empty)
    # The parameters' own files, gone or emptied.
    place = folder / store.CHECKPOINTS / "3" / "params"
    shutil.rmtree(place / "d", ignore_errors=True)
    for file in place.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    (place.parent / store.DIGESTS).unlink()  # which would tell
    with pytest.raises(InputError, match="cannot read") as error:
        store.restore_params(folder)
    assert "\n" not in str(error.value)
    assert store.restore_params(folder, step=2)[1] == CFG  # the one before is whole


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_flipped_bit_anywhere_is_refused_by_the_file(folder):
    place, template = folder / store.CHECKPOINTS / "3", jax.eval_shape(lambda: rest(0))
    listed = json.loads((place / store.DIGESTS).read_text())
    files = {p.relative_to(place).as_posix() for p in place.glob("*/**/*") if p.is_file()}
    assert listed.keys() == files and any(name.startswith("params/d/") for name in files)
    with store.Store(folder, writes=False) as checkpoints:
        for name in sorted(files):
            flip(place / name)
            read = None if name.startswith("params/") else template  # what is not read may be off
            with pytest.raises(InputError) as error:
                checkpoints.restore(3, abstract(SPEC), read)
            assert f"{name}: it is damaged" in str(error.value), name
            assert f"delete {place} to go back to step 2" in str(error.value)
            if read is not None:
                chex.assert_trees_all_equal(checkpoints.restore(3, abstract(SPEC))[0], values(3))
            flip(place / name)
        (place / store.DIGESTS).write_text("{}")
        with pytest.raises(InputError, match=r"digests\.json: it does not list"):
            checkpoints.restore(3, abstract(SPEC))
        (place / store.DIGESTS).unlink()  # as saved before there were digests
        chex.assert_trees_all_equal(checkpoints.restore(3, abstract(SPEC), template)[1], rest(3))


def test_a_checkpoint_without_its_digests_is_none(folder, monkeypatch):
    def fail(place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_save_digests", fail)
    with (
        pytest.raises(InputError, match="No space left on device; step 3 is kept"),
        store.Store(folder) as checkpoints,
    ):
        checkpoints.save(4, values(4), rest(4))
        checkpoints.wait()
    chex.assert_trees_all_equal(store.restore_params(folder)[0], values(3))


@pytest.mark.long(but=8)
@pytest.mark.parametrize(
    "content", ["", "[]", "null", "7", '"x"', "{}", '{"item_handlers": 7}', '{"tree_metadata": 7}']
)
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "params/_METADATA", "digests.json"])
def test_descriptions_of_other_types_are_refused_or_do_not_matter(folder, name, content):
    (folder / store.CHECKPOINTS / "3" / store.DIGESTS).unlink()  # which would tell
    (folder / store.CHECKPOINTS / "3" / name).write_text(content)
    try:
        chex.assert_trees_all_equal(store.restore_params(folder)[0], values(3))
    except InputError as error:
        assert "cannot read" in str(error) or "is not JSON" in str(error)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_parameters_that_are_not_finite_are_refused_by_name(tmp_path, value):
    store.save_model(CFG, tmp_path)
    params = values()
    params["runs"][1]["attention"]["out"]["kernel"] *= value
    with store.Store(tmp_path) as checkpoints:
        checkpoints.save(1, params, rest(1))
    with pytest.raises(InputError, match=r"runs/1/attention/out/kernel holds"):
        store.restore_params(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make"):
        store.Store(tmp_path / "file")


def test_reasons_are_the_system_s_own_words_where_there_are_such():
    assert store._reason(OSError(28, "No space left on device")) == "No space left on device"
    assert store._reason(ValueError("first line\nsecond")) == "first line"
    assert store._reason(ValueError("... os_error_code='13' ...")) == "Permission denied"


def test_the_damaged_one_of_several_descriptions_is_named(folder):
    (folder / store.CHECKPOINTS / "3" / "_CHECKPOINT_METADATA").write_text("[]")
    with pytest.raises(InputError, match=r"checkpoints/3/_CHECKPOINT_METADATA"):
        store.Store(folder)


def test_a_folder_that_was_lost_while_a_save_began_is_said(tmp_path):
    with pytest.raises(InputError, match="moved or deleted"), store.Store(tmp_path) as checkpoints:
        (tmp_path / store.CHECKPOINTS).rename(tmp_path / "gone")
        (tmp_path / store.CHECKPOINTS).mkdir()  # as the library would begin it anew
        checkpoints.wait()


def hooks():
    return sys.unraisablehook, [logging.getLogger(name).level for name in ("absl", "asyncio")]


def test_a_store_leaves_hooks_and_loggers_as_they_were(folder, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    before = hooks()
    with store.Store(folder), store.Store(folder, writes=False):
        assert hooks()[1] == [logging.CRITICAL] * 2 and hooks()[0] is not before[0]
    assert hooks() == before
    with pytest.raises(InputError, match="another process"), store.Store(folder):
        store.Store(folder)
    assert hooks() == before
    # Reads that are under way when one fails complain when they end: until then the hook stays.
    complaints.clear()  # of reads in the tests before
    for file in (folder / store.CHECKPOINTS / "3" / "params" / "d").iterdir():
        file.write_bytes(b"")
    (folder / store.CHECKPOINTS / "3" / store.DIGESTS).unlink()
    with pytest.raises(InputError, match="cannot read"):
        store.restore_params(folder)
    assert hooks()[1] == before[1] and not complaints
    store.restore_params(folder, step=2)
    assert hooks() == before


def test_complaints_of_others_are_passed_on(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    first, second = QuietLogs(), QuietLogs()
    other = SimpleNamespace(object=None, exc_value=ValueError("mine"))
    sys.unraisablehook(other)
    sys.unraisablehook(SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed")))
    assert heard == [other]
    chained = sys.unraisablehook  # as one holds who has put a hook of his own before it
    for hush in (first, first, second):
        assert sys.unraisablehook is chained
        hush.close()
    assert sys.unraisablehook == heard.append
    chained(other)
    assert heard == [other, other]


def test_a_run_of_another_kind_of_model_opens_by_what_its_file_says(tmp_path):
    cfg = timepro.TimeProConfig(16, 4, 2, 16, 8, 8)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract(timepro.spec(cfg))
    )
    store.save_model(cfg, tmp_path)
    with store.Store(tmp_path) as checkpoints:
        checkpoints.save(1, params, rest(1))
    assert json.loads((tmp_path / store.MODEL).read_text())["kind"] == "timepro"
    found, its_cfg = store.restore_params(tmp_path)
    assert its_cfg == cfg
    chex.assert_trees_all_equal(found, params)


def test_a_model_file_of_before_there_were_kinds_is_a_decoder_s(folder):
    path = folder / store.MODEL
    keys = json.loads(path.read_text())
    assert keys.pop("kind") == "decoder"
    path.write_text(json.dumps(keys))
    found, cfg = store.restore_params(folder)
    assert cfg == CFG
    chex.assert_trees_all_equal(found, values(3))


@pytest.mark.parametrize("kind", ["perceiver", 3, ["decoder"], None])
def test_a_kind_that_is_not_known_is_named_with_its_file(kind, folder):
    path = folder / store.MODEL
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": kind}))
    with pytest.raises(InputError, match=r"model\.json names the kind of model .*; known: decoder"):
        store.restore_params(folder)


def test_a_run_that_served_its_purpose_leaves_its_metrics(tmp_path, monkeypatch):
    def fill():
        (tmp_path / store.CHECKPOINTS / "3").mkdir(parents=True)
        for name in ("config.json", "metrics.jsonl", "checkpoints/3/part"):
            (tmp_path / name).write_text("{}")

    fill()
    # Killed before the settings are gone: what is left is a run that begins anew.
    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(RuntimeError))
        store.discard(tmp_path)
    assert not (tmp_path / store.CHECKPOINTS).exists() and (tmp_path / "config.json").exists()
    fill()
    with store.claim(tmp_path), pytest.raises(InputError, match="another process is training in"):
        store.discard(tmp_path)
    store.discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    store.discard(tmp_path)


def test_a_run_that_is_begun_has_its_settings_and_its_model(tmp_path):
    with store.begin(CFG, tmp_path, {"seed": 1, "every": 5}, free=("every",)) as held:
        assert held.holds() and store.load_model(tmp_path) == CFG
    (tmp_path / store.MODEL).unlink()  # killed between the two
    store.begin(CFG, tmp_path, {"seed": 1, "every": 6}, free=("every",)).close()
    assert store.load_model(tmp_path) == CFG
    refused = ({"seed": 2, "every": 5}, "another seed: 1, not 2"), ({"seed": 1}, "setting 'every'")
    for settings, words in refused:
        with pytest.raises(InputError, match=words):
            store.begin(CFG, tmp_path, settings)
    store.claim(tmp_path).close()  # which a refusal gives up
