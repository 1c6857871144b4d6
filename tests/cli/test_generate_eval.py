"""`pangu-jax generate` and `pangu-jax eval` as a user meets them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pangu_jax as pj
from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.main import main
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.decode import soft_thinking
from pangu_jax.decode.generate import generate
from pangu_jax.decode.sampling_config import SamplingConfig
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
    options = ["--prompt", "a£c", "--max-new-tokens", 9, "--temperature", 3, "--top-k", 5]
    assert call("generate", run_folder, *options, "--seed", 4) == 0
    out, err = capsys.readouterr()
    params, _, _ = open_checkpoint(run_folder)
    want = generate(
        params,
        [[256, *"a£c".encode()]],
        cfg=CFG,
        max_new_tokens=9,
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
    assert call("generate", run_folder, "--max-new-tokens", 80) == 0
    assert "made for 64 tokens" in capsys.readouterr().err


PROMPTS = [{"q": "abc", "id": 7}, {"q": ""}, {"q": "£ hé"}, {"q": "abc"}, {"q": "h" * 20}]


def asked(folder, records=PROMPTS):
    """A file of prompts, with a blank line before the last: lines 1 to 4, and 6."""
    path = folder / "prompts.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join([*lines[:-1], "", lines[-1]]))
    return path


def answers_in(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {answer["line"]: answer for answer in found}


@pytest.mark.long
def test_the_prompts_of_a_file_are_answered_line_by_line(run_folder, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    options = ["--prompts", asked(tmp_path), "--field", "q", "--out", out, "--batch", 2]
    options += ["--max-new-tokens", 9, "--tokenizer", "bytes"]
    assert call("generate", run_folder, *options) == 0
    assert "answers    5 in " in capsys.readouterr().out
    found, (params, _, _) = answers_in(out), open_checkpoint(run_folder)
    assert sorted(found) == [1, 2, 3, 4, 6]
    for line, record in zip((1, 2, 3, 4, 6), PROMPTS, strict=True):
        prompt = [256, *record["q"].encode()]
        want = generate(params, [prompt], cfg=CFG, max_new_tokens=9, stop_ids=[256]).rows()[0]
        assert found[line]["record"] == record
        assert found[line]["answer"] == ByteTokenizer().decode(want)
        assert found[line]["tokens"] == 9
        assert found[line]["end"] == "length"
    assert found[1]["by"]["max_new_tokens"] == 9


@pytest.mark.long
def test_answers_are_gone_on_with(run_folder, tmp_path, capsys):
    """Those that are there are kept, and the others are what they would have been."""
    out = tmp_path / "answers.jsonl"
    options = ["--prompts", asked(tmp_path), "--field", "q", "--out", out, "--batch", 2]
    options += ["--max-new-tokens", 9, "--temperature", 3]
    assert call("generate", run_folder, *options) == 0
    whole, text = answers_in(out), out.read_bytes()
    assert whole[1]["answer"] != whole[4]["answer"]  # each line has a key of its own
    lines = text.splitlines(keepends=True)
    for left in (lines[3] + lines[1] + lines[0][:30], b"", text):
        out.write_bytes(left)
        capsys.readouterr()
        assert call("generate", run_folder, *options) == 0
        assert answers_in(out) == whole
        assert out.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    assert "5 of them were there" in capsys.readouterr().out
    older = [json.loads(line) for line in text.splitlines()]
    for line in older:
        line["by"]["max_new"] = line["by"].pop("max_new_tokens")
    out.write_text("".join(json.dumps(line) + "\n" for line in older))
    words = ["--max-new" if word == "--max-new-tokens" else word for word in options]
    assert call("generate", run_folder, *words) == 0  # by their older names
    assert "5 of them were there" in capsys.readouterr().out
    out.write_bytes(text)
    for changes in (["--temperature", 2], ["--max-new-tokens", 8], ["--seed", 1]):
        assert call("generate", run_folder, *options, *changes) == 2
        name = changes[0][2:].replace("-", "_")
        assert f"line 1 holds an answer with another {name}: " in capsys.readouterr().err
    asked(tmp_path, PROMPTS[1:])
    assert call("generate", run_folder, *options) == 2
    assert "answers no prompt of these" in capsys.readouterr().err
    assert out.read_bytes() == text


@pytest.mark.long
def test_a_model_thinks_softly_before_it_writes(run_folder, tmp_path, capsys):
    soft = ["--soft-thinking", "--think-end", ":", "--think-tokens", 3, "--max-new-tokens", 4]
    soft += ["--think-noise", 1.0]  # of the same key from Python
    assert call("generate", run_folder, "--prompt", "abc", *soft) == 0
    shown, told = capsys.readouterr()
    assert "3 mixtures, ended by its length" in told
    out = tmp_path / "answers.jsonl"
    options = ["--prompts", asked(tmp_path), "--field", "q", "--out", out, *soft]
    assert call("generate", run_folder, *options) == 0
    found = answers_in(out)
    assert "abc" + found[1]["answer"] + "\n" == shown and found[1]["by"]["think_tokens"] == 3
    written = pj.generate(
        pj.load(run_folder),
        ["abc"],
        max_new_tokens=4,
        soft_thinking=True,
        think_end=":",
        soft=soft_thinking.SoftThinkingConfig(think_tokens=3, think_noise=1.0),
    )
    assert written == [found[1]["answer"]]
    assert call("generate", run_folder, *options, "--think-top-k", 2) == 2
    assert "another think_top_k" in capsys.readouterr().err
    plain = ["--prompts", options[1], "--field", "q", "--out", out]
    assert call("generate", run_folder, *plain) == 2
    assert "line 1 was answered with --soft-thinking" in capsys.readouterr().err
    with pytest.raises(InputError, match="want soft_thinking=True"):
        pj.generate(pj.load(run_folder), ["abc"], think_end=":")
    for wrong, words in (
        (["--soft-thinking"], "has no token </think>"),
        (["--think-tokens", 3], "want --soft-thinking"),
        (["--soft-thinking", "--think-top-p", 0], "think_top_p must be in"),
    ):
        assert call("generate", run_folder, "--prompt", "abc", *wrong) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a", "--prompts", "FILE", "--out", "OUT"], "--prompt or --prompts, not both"),
        (["--prompts", "FILE"], "--prompts needs --out"),
        (["--out", "OUT"], "--out is for the answers to --prompts"),
        (["--prompts", "FILE", "--out", "answers.txt"], "written as .jsonl"),
        (["--prompts", "FILE", "--out", "OUT", "--batch", 0], "batch must be at least 1"),
        (
            ["--prompts", "FILE", "--out", "OUT", "--max-new-tokens", 0],
            "max_new_tokens must be at least 1",
        ),
        (["--prompts", "FILE", "--out", "OUT"], "prompts.jsonl line 1 has no text under"),
        (["--prompts", "none.jsonl", "--out", "OUT"], "cannot read none.jsonl"),
    ],
)
def test_files_that_do_not_go_together_are_refused(run_folder, tmp_path, capsys, options, words):
    names = {"FILE": asked(tmp_path), "OUT": tmp_path / "out.jsonl"}
    assert call("generate", run_folder, *(names.get(x, x) for x in options)) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_eval_prints_the_measurement_and_its_protocol(run_folder, tmp_path, capsys):
    texts = ["abc hfe", "dead beef cafe"]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--data", path, "--length", 6, "--stride", 2, "--batch", 3]
    assert call("eval", run_folder, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    params, _, _ = open_checkpoint(run_folder)
    tokens = tokenize([Document(text, text) for text in texts], ByteTokenizer())
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
        ["generate", run_folder, "--max-new-tokens", 0],
        ["generate", run_folder, "--tokenizer", tmp_path / "none.json"],
        ["eval", run_folder, "--data", tmp_path / "nothing.txt"],
        ["eval", run_folder, "--data", text, "--length", 4, "--stride", 5],
    ):
        assert call(*arguments) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("pangu-jax: ")
        assert err.count("\n") == 0
