"""`pangu-jax merge`: checkpoints in, one checkpoint out, or one sentence that says why not."""

import json
import re
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, store
from pangu_jax.cli.main import main
from pangu_jax.models import decoder, registry
from pangu_jax.reasoning.merge import merge
from pangu_jax.reasoning.merge_recipe import FROM_BASE, Recipe

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = "model.safetensors"


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["merge", *map(str, arguments)])
    return end.value.code


def checkpoint(folder, case="llama2", *, seed=0, dtype=None, config=None, without=()):
    """A golden folder whose weights have moved a little."""
    shutil.copytree(GOLDEN / case, folder)
    rng, found = np.random.default_rng(seed), load_file(folder / WEIGHTS)
    moved = {
        name: (x + 0.1 * rng.normal(size=x.shape).astype(x.dtype)).astype(dtype or x.dtype)
        for name, x in found.items()
        if name not in without
    }
    save_file(moved, folder / WEIGHTS)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, **(config or {})}))
    return folder


@pytest.fixture
def three(tmp_path):
    longer = {"max_position_embeddings": 8192}  # which does not enter what is computed
    changes = (None, None, longer)
    return [checkpoint(tmp_path / n, seed=i, config=changes[i]) for i, n in enumerate("abc")]


def test_the_mean_is_that_of_each_tensor_and_no_model_is_loaded(three, tmp_path, monkeypatch):
    monkeypatch.setattr("pangu_jax.reasoning.merge_checkpoints.open_checkpoint", pytest.fail)
    assert call(*three, "--out", tmp_path / "out") == 0
    found, parts = load_file(tmp_path / "out" / WEIGHTS), [load_file(f / WEIGHTS) for f in three]
    assert found.keys() == parts[0].keys()
    for name, got in found.items():
        want = np.mean([part[name].astype(np.float64) for part in parts], axis=0)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=name)
    text = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(text) == json.loads((three[0] / "config.json").read_text())
    recipe = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert recipe["method"] == "mean" and recipe["checkpoints"] == list(map(str, three))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "out"]


@pytest.mark.long(but=2)
@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("llama2", "slerp"),
        *(("qwen3_moe_fused", m) for m in ("task_arithmetic", "slerp", "ties", "dare")),
    ],
)
def test_what_is_written_is_the_merge_of_the_trees(case, method, tmp_path):
    folders = [checkpoint(tmp_path / name, case, seed=i) for i, name in enumerate("abo")]
    base = folders.pop() if method in FROM_BASE else None
    folders = folders[:2]
    options = ["--base", base] if base else []
    assert call(*folders, *options, "--method", method, "--lambda", 0.7, "--density", 0.3,
                "--seed", 5, "--out", tmp_path / "out") == 0  # fmt: skip
    trees = [hf.load(folder) for folder in folders]
    want = merge(
        [params for params, _ in trees],
        Recipe(method, 0.7, 0.3, seed=5),
        base=hf.load(base)[0] if base else None,
        spec=registry.spec(trees[0][1]),
    )
    found, cfg = hf.load(tmp_path / "out")
    assert cfg == trees[0][1]
    chex.assert_trees_all_equal(found, want)


def test_bfloat16_is_merged_wide_and_kept_or_written_as_is_asked_for(tmp_path):
    half = ml_dtypes.bfloat16
    folders = [checkpoint(tmp_path / name, seed=i, dtype=half) for i, name in enumerate("ab")]
    parts = [load_file(folder / WEIGHTS) for folder in folders]
    for dtype, options in (("bfloat16", []), ("float32", ["--dtype", "float32"])):
        assert call(*folders, *options, "--out", tmp_path / dtype) == 0
        for name, got in load_file(tmp_path / dtype / WEIGHTS).items():
            want = np.mean([part[name].astype(np.float64) for part in parts], axis=0)
            np.testing.assert_array_equal(got, want.astype(np.float32).astype(got.dtype))
            assert got.dtype.name == dtype


def run_folder(folder, source, noise):
    """A run like another whose weights have moved so far; both are of bytes."""
    params, cfg = store.restore_params(source)
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape).astype(x.dtype), params)
    store.save_model(cfg, folder)
    with store.Store(folder) as checkpoints:
        checkpoints.save(1, moved, {"step": jnp.int32(1)})
    return folder


@pytest.fixture
def gates(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 5)
    asked = [{"instruction": f"Is {i}?", "label": str(i % 3 == 0)} for i in range(12)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return [tmp_path / "text.txt", tmp_path / "asked.jsonl"]


def test_a_gate_lets_through_what_is_no_worse_and_refuses_a_poisoned_merge(
    tiny_run, gates, tmp_path, capsys
):
    text = gates[0]
    options = ["--length", 64, "--out", tmp_path / "out"]
    bad = run_folder(tmp_path / "bad", tiny_run, 30.0)
    assert call(tiny_run, bad, "--gate", text, *options) == 1
    found = capsys.readouterr()
    assert f"the best single checkpoint is {tiny_run}" in found.out
    assert "the merge is not taken: " in found.err and f"of {tiny_run}, so take that" in found.err
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    assert call(tiny_run, bad, "--gate", text, "--tolerance", 1e6, *options) == 0
    values = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert values["unit"] == "bits per byte" and len(set(values["scores"].values())) == 3


@pytest.mark.slow
def test_of_a_model_and_itself_the_merge_is_the_model(tiny_run, gates, tmp_path):
    out = tmp_path / "out"
    assert call(tiny_run, tiny_run, "--gate", gates[1], "--out", out) == 0
    values = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert values["unit"] == "accuracy, by likelihood per byte"
    assert values["scores"].keys() == {str(tiny_run), str(tmp_path / "out")}
    assert len(set(values["scores"].values())) == 1
    chex.assert_trees_all_equal(hf.load(tmp_path / "out")[0], store.restore_params(tiny_run)[0])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"config": {"rms_norm_eps": 1e-3}}, [], r"has norm_eps = 1e-06 and .*b 0\.001; only"),
        ({"case": "qwen3"}, [], "only models of the same architecture can be merged"),
        ({"without": ["model.norm.weight"]}, [], "lacks the tensor model.norm.weight"),
        ({}, ["--method", "ties"], "method ties takes a base that the models come from"),
        ({}, ["--base", "a"], "method mean takes no base"),
        ({}, ["--lambda", "0.5"], "a mean has no scale"),
        ({}, ["--weights", "1"], "there are 1 weights for 2 models"),
        ({}, ["--gate", "none.txt"], "holds no tokenizer, which a gate takes"),
        ({}, ["--tolerance=-1"], "tolerance must be at least 0"),
        ({}, ["--out", "a"], "exists and is not empty"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence_and_leaves_nothing(
    change, options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "a")
    checkpoint(tmp_path / "b", **change)
    out = [] if "--out" in options else ["--out", "out"]
    assert call("a", "b", *out, *options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pangu-jax: ")
    assert re.search(message, line), line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parity
def test_stock_transformers_loads_a_merge(three, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    assert call(*three[1:], "--base", three[0], "--method", "ties", "--out", tmp_path / "out") == 0
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    params, cfg = hf.load(tmp_path / "out")
    ids = np.arange(1, 13, dtype=np.int32)[None]
    hidden = decoder.apply(params, jnp.asarray(ids), cfg=cfg).hidden
    ours = decoder.logits(params, hidden, cfg=cfg)
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
