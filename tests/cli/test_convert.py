"""`pangu-jax convert`: run folders and checkpoints become folders that other libraries load."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf, store
from pangu_jax.cli.main import main
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, presets
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = AttentionConfig(2, 1, 4)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        ({"mlp": MlpConfig(8)}, "llama"),
        ({"moe": MoEConfig(8, 4, 1, 4, shared_width=8, router_scale=True)}, "pangu-pro-moe"),
    ],
)
def test_a_run_becomes_the_first_family_that_fits(layers, family, tmp_path, capsys):
    heads = HEADS
    if family == "pangu-pro-moe":
        heads = AttentionConfig(2, 1, 4, True, True, True, True)
    cfg = presets.uniform(presets.BYTE_VOCAB, 8, 2, heads, **layers)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        decoder.spec(cfg),
        is_leaf=is_spec,
    )
    store.save_model(cfg, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    with store.Store(tmp_path / "run") as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    assert call(tmp_path / "run", tmp_path / "out") == 0
    found = capsys.readouterr()
    assert f"as {family}" in found.out and "its tokens are bytes" in found.err
    loaded, same = hf.load(tmp_path / "out")
    assert same == cfg and hf.read_config(tmp_path / "out")[1] == family
    for name, leaf in flatten(loaded).items():
        np.testing.assert_array_equal(leaf, flatten(params)[name], err_msg=name)


def test_embedded_becomes_a_llama_in_another_type(tmp_path, capsys):
    out = tmp_path / "out"
    source = GOLDEN / "pangu_embedded"
    assert call(source, out, "--family", "llama", "--dtype", "float16") == 0
    assert hf.read_config(out) == (hf.read_config(source)[0], "llama")
    assert {leaf.dtype for leaf in jax.tree.leaves(hf.load(out)[0])} == {jnp.dtype("float16")}


def test_what_cannot_be_expressed_is_one_sentence_and_leaves_nothing(tmp_path, capsys):
    assert call(GOLDEN / "qwen3", tmp_path / "out", "--family", "llama") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "qk_norm" in line
    assert not (tmp_path / "out").exists()
