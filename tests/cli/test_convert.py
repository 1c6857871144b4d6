"""`pangu-jax convert`: run folders and checkpoints become folders that other libraries load."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract, is_spec
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.models import decoder, presets, timepro
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
    chex.assert_trees_all_equal(loaded, params)


def test_a_kind_of_model_that_no_family_is_of_is_not_converted(tmp_path, capsys):
    cfg, run, out = timepro.TimeProConfig(16, 4, 1, 16, 8, 8), tmp_path / "run", tmp_path / "out"
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), abstract(timepro.spec(cfg)))
    store.save_model(cfg, run)
    with store.Store(run) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    assert call(run, out) == 2
    assert "no family of the Hugging Face layout is of the kind timepro" in capsys.readouterr().err
    assert call(run, out, "--family", "llama") == 2
    assert "cannot express a model of kind timepro" in capsys.readouterr().err
    run.joinpath("model.json").rename(run / "forecaster.json")
    assert call(run, out) == 2 and not out.exists()
    assert "holds a forecaster, which is for" in capsys.readouterr().err


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


def changed(tmp_path, case="llama2", *, config=None, **tensors):
    """A copy of a golden folder with other keys and tensors."""
    folder = tmp_path / "source"
    shutil.copytree(GOLDEN / case, folder)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, **(config or {})}))
    found = load_file(folder / "model.safetensors")
    save_file({**found, **tensors}, folder / "model.safetensors")
    return folder


def test_mixed_types_become_the_one_that_is_asked_for(tmp_path, capsys):
    norm = np.ones(32, ml_dtypes.bfloat16)
    folder = changed(tmp_path, **{"model.layers.1.input_layernorm.weight": norm})
    assert call(folder, tmp_path / "out", "--dtype", "bfloat16") == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype.name for array in found.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_note_of_the_library_is_a_line_like_any_other(tmp_path, capsys):
    head = np.ones((48, 32), np.float32)
    assert call(changed(tmp_path, "qwen3", **{"lm_head.weight": head}), tmp_path / "out") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "so they are not tied" in line


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    folder = changed(tmp_path, **{"model.norm.weight": np.full(32, np.nan, np.float32)})
    assert call(folder, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors: model.norm.weight holds NaN or infinity" in line
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_code_that_is_left_behind_is_said(tmp_path, capsys):
    auto = {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    folder = changed(tmp_path, "pangu_embedded", config=auto)
    assert call(folder, tmp_path / "out") == 0
    assert "(auto_map), which is not copied" in capsys.readouterr().err
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


KILLED = """
import os, sys
from pangu_jax.checkpoint import safetensors_files
from pangu_jax.cli.main import main
safetensors_files.header = lambda path: os._exit(9) if ".out." in str(path) else real(path)
"""


@pytest.mark.long
def test_what_a_killed_convert_left_is_cleared_by_the_next(tmp_path, capsys):
    code = "from pangu_jax.checkpoint.safetensors_files import header as real\n" + KILLED
    code += f"main(['convert', {str(GOLDEN / 'llama2')!r}, {str(tmp_path / 'out')!r}])"
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and (left / "model.safetensors").exists()
    assert call(GOLDEN / "llama2", tmp_path / "out") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


MEASURE = """
import sys, threading, time
from pangu_jax.cli.main import main
from pangu_jax.cli import convert

def memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

base, peak = memory(), 0

def watch():
    global peak
    while True:
        peak = max(peak, memory())
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
try:
    main(["convert", *sys.argv[1:]])
finally:
    print(max(peak, memory()) - base, file=sys.stderr)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_holds_a_few_tensors_and_neither_model_nor_file(tmp_path):
    """192 MB in tensors of 8 MB; jax's start takes some memory too."""
    width, hidden, layers = 1024, 4096, 8
    size = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
    shapes = {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
    shapes |= {"mlp.down_proj": (width, hidden), "input_layernorm": (width,)}
    shapes |= {"post_attention_layernorm": (width,), "self_attn.q_proj": (32, width)}
    shapes |= {"self_attn.k_proj": (16, width), "self_attn.v_proj": (16, width)}
    shapes |= {"self_attn.o_proj": (width, 32)}
    names = {f"model.layers.{i}.{n}.weight": s for i in range(layers) for n, s in shapes.items()}
    names |= {"model.embed_tokens.weight": (48, width), "lm_head.weight": (48, width)}
    names |= {"model.norm.weight": (width,)}
    arrays = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in names.items()}
    folder = changed(tmp_path, config=size)
    save_file(arrays, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stderr.splitlines()[-1]) / 2**20
    print(f"{grown:.0f} MB")
    assert grown < 100


@pytest.fixture(scope="module")
def make_gguf():
    tool = Path(__file__).parents[2] / "tools" / "make_gguf.py"
    spec = importlib.util.spec_from_file_location("make_gguf", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOKENS = [*"abcdefghijklmnopqrstuvwxyz", "<s>", "</s>", *map(str, range(10)), *".,;:!?-()'"]
DESCRIBED = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 26 + [3, 3] + [1] * 20,
    "tokenizer.ggml.merges": [""],
    "tokenizer.ggml.bos_token_id": 26,
    "tokenizer.ggml.eos_token_id": 27,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}


def test_a_gguf_file_becomes_a_folder_with_its_tokenizer(make_gguf, tmp_path, capsys):
    file = tmp_path / "m.gguf"
    metadata = {**DESCRIBED, "tokenizer.ggml.tokens": [*TOKENS[:47], "ab"]}
    metadata["tokenizer.ggml.merges"] = ["a b"]
    make_gguf.write(GOLDEN / "llama2", file, metadata=metadata)
    assert call(file, tmp_path / "out") == 0
    found = capsys.readouterr()
    assert "parameters as llama" in found.out and not found.err
    params, cfg, where = open_checkpoint(tmp_path / "out")
    expected, same = hf.load(GOLDEN / "llama2")
    assert cfg == same
    chex.assert_trees_all_equal(params, expected)
    tokenizer = load_tokenizer(where)
    assert tokenizer.encode("abc") == [47, 2] and tokenizer.begin == (26,)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"]
    with pytest.raises(InputError, match="pangu-jax convert"):
        open_checkpoint(file)


def test_a_tokenizer_that_is_not_read_is_left_out_and_said(make_gguf, tmp_path, capsys):
    file = tmp_path / "m.gguf"
    make_gguf.write(
        GOLDEN / "qwen2", file, metadata={**DESCRIBED, "tokenizer.ggml.pre": "command-r"}
    )
    assert call(file, tmp_path / "out", "--dtype", "bfloat16") == 0
    assert "'command-r', which is not read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    hf.load(tmp_path / "out")


def test_a_damaged_gguf_file_leaves_nothing(tmp_path, capsys):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    assert call(file, tmp_path / "out") != 0
    assert "m.gguf is not a little-endian GGUF" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
