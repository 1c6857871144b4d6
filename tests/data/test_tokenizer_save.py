"""A tokenizer's files in another folder: the same ids, and nothing that is not there."""

import json

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import RUN, ByteTokenizer, load_tokenizer
from pangu_jax.data.tokenizer_save import companions, tokenizer_files

from .test_tokenizer import ADDED, begins, byte_fallback, byte_level, save
from .test_tokenizer_sentencepiece import LLAMA, write

TEXTS = ["a b self", " a", "<s>a\n😀", "[unused9]a"]
MAP = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}


def copied(folder, new, files):
    new.mkdir()
    for name, content in files.items():
        (new / name).write_bytes(content)
    return load_tokenizer(new), json.loads(files["tokenizer_config.json"])


def same(one, two):
    for text in TEXTS:
        assert one.encode(text) == two.encode(text), text
    for name in ("begin", "boundary", "eos_ids", "vocab_size"):
        assert getattr(one, name) == getattr(two, name), name


@pytest.mark.parametrize(
    ("make", "config", "run"),
    [
        (byte_fallback, {"bos_token": "<s>"}, False),
        (byte_fallback, ADDED, False),  # only the configuration asks for a begin
        (lambda: begins(byte_fallback()), {}, False),
        (lambda: begins(byte_fallback()), {"bos_token": "</s>"}, True),
        (byte_level, {"bos_token": None, "eos_token": "<|endoftext|>"}, False),
        (byte_level, {"bos_token": None, "eos_token": "<|endoftext|>"}, True),
    ],
)
def test_ids_begin_and_ends_are_the_same(make, config, run, tmp_path):
    folder = save(tmp_path / "old", make(), tokenizer_config=config)
    if run:  # its training put the boundary first; the copy is no run and must say so itself
        (folder / RUN).write_text("{}")
    old = load_tokenizer(folder)
    files = tokenizer_files(old)
    new, written = copied(folder, tmp_path / "new", files)
    same(old, new)
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = new.inner.encode("a b").ids
    assert tuple(text[: len(old.begin)]) == old.begin  # as other libraries read it
    if not run and "add_bos_token" not in config:
        assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


def test_what_only_config_json_said_is_written_down(tmp_path):
    ids = {"bos_token_id": 5, "eos_token_id": [7, 8]}
    old = load_tokenizer(save(tmp_path / "old", byte_fallback(), config=ids))
    files = tokenizer_files(old)
    same(old, copied(tmp_path, tmp_path / "new", files)[0])
    assert json.loads(files["generation_config.json"]) == ids


def test_a_sentencepiece_model_becomes_a_tokenizer_json_of_a_stock_class(tmp_path):
    folder = write(tmp_path / "old", **LLAMA)
    config = {**ADDED, "auto_map": MAP, "tokenizer_class": "OwnTokenizer", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("x")
    old = load_tokenizer(folder)
    files = tokenizer_files(old)
    new, written = copied(folder, tmp_path / "new", files)
    same(old, new)
    assert files["chat_template.jinja"] == b"x"
    assert not {"auto_map", "legacy"} & set(written)
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_stock_class_is_kept_and_python_files_are_not_named(tmp_path):
    kept = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<s>"}
    folder = save(tmp_path / "t", byte_fallback(), tokenizer_config=kept)
    assert json.loads(companions(folder, folder)["tokenizer_config.json"]) == kept
    (folder / "tokenizer.json").unlink()  # what cannot be read travels, but for the code
    assert companions(folder, folder) == {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kept, "auto_map": MAP}))
    assert json.loads(companions(folder, folder)["tokenizer_config.json"]) == kept
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no JSON object"):
        companions(folder, folder)


def test_bytes_have_no_files():
    assert tokenizer_files(ByteTokenizer()) == {}
