"""`pangu-jax embed`: the file, what is said of it, and one sentence for what cannot be done."""

import json
import shutil

import numpy as np
import pytest

from pangu_jax.checkpoint import hf, store
from pangu_jax.cli.main import main
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval import embedding
from pangu_jax.models.timepro_config import TimeProConfig

TEXTS = ["a b c", "d", "", "a b c d e f g h i j k l m n o p"]


def call(*words):
    with pytest.raises(SystemExit) as end:
        main(["embed", *map(str, words)])
    return end.value.code


@pytest.fixture
def data(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    records = [json.dumps({"text": "z", "body": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(records))
    return tmp_path


def test_vectors_of_lines_and_of_records(encoder_folder, data, capsys):
    out = data / "new" / "vectors.npy"
    assert call(encoder_folder, "--data", data / "texts.txt", "--out", out) == 0
    assert capsys.readouterr().out.splitlines() == [
        "vectors    4 of width 32",
        f"pooling    mean, scaled to length 1 (by {encoder_folder})",
        "truncated  1 texts, to 12 tokens",
    ]
    found = np.load(out)
    params, cfg = hf.load(encoder_folder, dtype="float32")
    tokenizer = load_tokenizer(encoder_folder)
    want = embedding.embed(params, TEXTS, cfg=cfg, tokenizer=tokenizer).vectors
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, atol=1e-6)
    words = [encoder_folder, "--data", data / "texts.jsonl", "--field", "body", "--out", out]
    assert call(*words, "--pooling", "last", "--prefix", "q: ", "--max-length", "9") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "pooling    last, scaled to length 1 (by --pooling)",
        "prefix     'q: '",
        "truncated  1 texts, to 9 tokens",
    ]
    assert np.abs(np.load(out) - found).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": "v.txt"}, "--out is 'v.txt'; vectors are written as .npy"),
        ({"data": "empty.txt"}, "empty.txt holds no text: every document is empty"),
        ({"data": "none.txt"}, "there is no file or folder"),
        ({"data": "texts.jsonl", "field": "title"}, "line 1 has no text under the key 'title'"),
        ({"max-length": "99"}, "cannot be cut to 99 tokens: the model takes 24"),
        ({"batch": "0"}, "batch must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_one_sentence(change, said, encoder_folder, data, capsys):
    (data / "empty.txt").write_text("")
    options = {"data": "texts.txt", "out": "v.npy", **change}
    paths = {name: data / options[name] for name in ("data", "out") if options[name] != "v.txt"}
    words = [f"--{name}={value}" for name, value in {**options, **paths}.items()]
    assert call(encoder_folder, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(data.glob("*.npy"))


def test_a_folder_that_does_not_say_how_to_pool(encoder_folder, data, capsys):
    silent = data / "silent"
    shutil.copytree(encoder_folder, silent)
    (silent / "modules.json").unlink()
    words = [silent, "--data", data / "texts.txt", "--out", data / "v.npy"]
    assert call(*words) == 2
    assert "give the option pooling: cls, mean, weighted, last or max" in capsys.readouterr().err
    assert call(*words, "--pooling", "cls") == 0
    assert "pooling    cls (by --pooling)\ntruncated  0 texts, to 24" in capsys.readouterr().out
    keys = json.loads((silent / "config.json").read_text())
    (silent / "tokenizer.json").write_text(
        (encoder_folder / "tokenizer.json").read_text().replace('"z": 29', '"z": 48')
    )
    (data / "texts.txt").write_text("z")
    assert call(*words, "--pooling", "cls") == 2 and keys["vocab_size"] == 48
    assert "gives 'z' the id 48, the model's vocabulary ends at 47" in capsys.readouterr().err


def test_a_decoder_needs_to_be_told_how_to_pool(tiny_run, data, capsys):
    words = [tiny_run, "--data", data / "texts.txt", "--out", data / "v.npy", "--batch", 4]
    assert call(*words) == 2
    assert "tiny0 does not say how hidden states make a vector" in capsys.readouterr().err
    asked = ["--pooling", "mean", "--attention", "bidirectional", "--prefix", "q: "]
    assert call(*words, *asked, "--pool-prefix", "False") == 0
    assert capsys.readouterr().out.splitlines() == [
        "vectors    4 of width 8",
        "pooling    mean (by --pooling)",
        "attention  bidirectional",
        "prefix     'q: ', not pooled",
        "truncated  0 texts, to 400 tokens",
    ]
    found = np.load(data / "v.npy")
    assert np.isfinite(found).all() and np.abs(found).max(1).min() > 0  # that of "" too


def test_another_kind_of_model(data, capsys):
    (data / "run").mkdir()
    store.save_model(TimeProConfig(16, 4, 1, 16, 8, 8), data / "run")
    assert call(data / "run", "--data", data / "texts.txt", "--out", data / "v.npy") == 2
    said = "holds a timepro; `pangu-jax embed` takes an encoder or an embedder or a decoder"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--attention", "causal"], "holds a model whose attention is bidirectional, not causal"),
        (["--pool-prefix", "True"], "whether prefixes are pooled is for decoders"),
    ],
)
def test_what_is_for_decoders(more, said, encoder_folder, data, capsys):
    words = [encoder_folder, "--data", data / "texts.txt", "--out", data / "v.npy", *more]
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
