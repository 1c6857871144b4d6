"""`pangu-jax generate` and `pangu-jax eval` as a user meets them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.main import main
from pangu_jax.core.spec import is_spec
from pangu_jax.data.packing import tokenise
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.decode.generate import generate
from pangu_jax.decode.sample import SamplingConfig
from pangu_jax.eval.perplexity import measure
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

CFG = decoder.DecoderConfig(
    264, 8, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),), max_length=64
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape), jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )
    # Only the letters a to h, so that the text shows what was drawn.
    bias = np.full((8, 264), 0.0)
    bias[:, 97:105] = 1
    params["head"]["kernel"] = params["head"]["kernel"] * bias
    store.save_model(CFG, folder)
    with store.Store(folder) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    return folder


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_generate_prints_the_prompt_its_continuation_and_the_speed(run_folder, capsys):
    options = ["--prompt", "a£c", "--max-new", 9, "--temperature", 3, "--top-k", 5]
    assert call("generate", run_folder, *options, "--seed", 4) == 0
    out, err = capsys.readouterr()
    params, _, _ = open_checkpoint(run_folder)
    want = generate(
        params,
        [[256, *"a£c".encode()]],
        cfg=CFG,
        max_new=9,
        sampling=SamplingConfig(3.0, top_k=5),
        stop_ids=[256],
        key=jax.random.key(4),
    )
    assert out == "a£c" + ByteTokenizer().decode(want.rows()[0]) + "\n"
    assert "9 tokens" in err
    assert "tokens/s" in err
    assert "note" not in err
    assert call("generate", run_folder, *options, "--seed", 5) == 0
    assert capsys.readouterr().out != out
    assert call("generate", run_folder, "--max-new", 80) == 0
    assert "made for 64 tokens" in capsys.readouterr().err


def test_eval_prints_the_measurement_and_its_protocol(run_folder, tmp_path, capsys):
    texts = ["abc hfe", "dead beef cafe"]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--data", path, "--length", 6, "--stride", 2, "--batch", 3]
    assert call("eval", run_folder, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    params, _, _ = open_checkpoint(run_folder)
    tokens = tokenise([Document(text, text) for text in texts], ByteTokenizer())
    want = measure(params, tokens, cfg=CFG, length=6, stride=2, batch=3)
    assert found["nats"] == pytest.approx(want.nats, rel=1e-9)
    assert found["perplexity"] == want.perplexity
    assert found["tokens"] == found["bytes"] == 21
    assert found["protocol"] == want.protocol
    assert call("eval", run_folder, *options) == 0
    out = capsys.readouterr().out
    for text in (f"{want.perplexity:.4f}", f"{want.bits_per_byte:.4f}", "windows of 6 tokens"):
        assert text in out


def test_what_is_wrong_is_said_in_one_sentence(run_folder, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("abc")
    for arguments in (
        ["generate", tmp_path],
        ["generate", run_folder, "--max-new", 0],
        ["generate", run_folder, "--tokenizer", tmp_path / "none.json"],
        ["eval", run_folder, "--data", tmp_path / "nothing.txt"],
        ["eval", run_folder, "--data", text, "--length", 4, "--stride", 5],
    ):
        assert call(*arguments) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("pangu-jax: ")
        assert err.count("\n") == 0
