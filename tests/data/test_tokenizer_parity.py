"""Tokens in against transformers, live: `make parity`."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import pre_tokenizers

from pangu_jax.cli.main import main
from pangu_jax.data.chat import prompt_ids, render
from pangu_jax.data.checkpoint_chat_template import load_template
from pangu_jax.data.tokenizer import load_tokenizer

from .test_tokenizer import ADDED, begins, byte_fallback, byte_level
from .test_tokenizer_sentencepiece import LLAMA, WORDS, write

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = ["Hello", "a b self", " a", "", "<s>a b", "<s> a</s>b", "a\n b 你 😀", " ".join(WORDS)]
TALK = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": " a b "},
    {"role": "assistant", "content": "self"},
    {"role": "user", "content": "ab"},
]
PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% elif tools is none %}"
    "{% generation %}{{ m.content | trim }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ messages[0] | tojson }}<think>\n{% endif %}"
)


def metaspace(scheme):
    """As Llama's in newer versions: the space before the first word is the pre-tokenizer's."""
    inner = byte_fallback()
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    return inner


def oracle(folder):
    transformers = pytest.importorskip("transformers")
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


def save(folder, inner, **config):
    inner.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


KINDS = {
    "prepended": byte_fallback,
    "first": lambda: metaspace("first"),
    "always": lambda: metaspace("always"),
    "bytes": byte_level,
    "begins": lambda: begins(byte_fallback(), "<s>"),
    "begins first": lambda: begins(metaspace("first"), "<s>"),
}
END = {"eos_token": "</s>", "bos_token": "<s>"}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_dialogues_have_the_ids_of_transformers(kind, tmp_path):
    names = {"eos_token": "<|endoftext|>"} if kind == "bytes" else END
    folder = save(tmp_path, KINDS[kind](), **names)
    want, tokenizer = oracle(folder), load_tokenizer(folder)
    for text in TEXTS:
        ids = want(text).input_ids
        ids = ids[:-1] if "begins" in kind else ids  # its post-processor ends the text too
        assert [*tokenizer.begin, *tokenizer.encode(text)] == ids, text
        plain = want.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == plain, text
    for source in (PLAIN, "{{ bos_token }}" + PLAIN, "{{ bos_token }} " + PLAIN, "</s>" + PLAIN):
        want.chat_template = source
        (folder / "chat_template.jinja").write_text(source)
        template = load_template(folder, tokenizer)
        for begun in (True, False):
            ids = want.apply_chat_template(TALK, add_generation_prompt=begun)["input_ids"]
            text = render(TALK, template, add_generation_prompt=begun)
            assert prompt_ids(text, tokenizer, template) == ids, source


def test_a_begin_that_only_the_configuration_asks_for_is_written_down(tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(GOLDEN / "llama2", folder)
    save(folder, byte_fallback(), **ADDED)
    convert(folder, tmp_path / "out")
    same_ids(load_tokenizer(folder), oracle(tmp_path / "out"), TEXTS)


def same_ids(tokenizer, want, texts):
    for text in texts:
        assert want(text).input_ids == [*tokenizer.begin, *tokenizer.encode(text)], text
        assert want.encode(text, add_special_tokens=False) == tokenizer.encode(text), text


def convert(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    assert end.value.code == 0


PANGU = {
    "add_bos_token": True,
    "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
    "bos_token": "<s>",
    "eos_token": "[unused10]",
    "pad_token": "[PAD]",
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
    "tokenizer_class": "PanguTokenizer",
}


@pytest.mark.parametrize("family", ["llama", None])
def test_a_sentencepiece_folder_becomes_one_that_transformers_reads(family, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(GOLDEN / "llama2", folder)
    write(folder, **LLAMA)
    (folder / "tokenizer_config.json").write_text(json.dumps(PANGU))
    convert(folder, tmp_path / "out", *(["--family", family] if family else []))
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "auto_map" not in written
    tokenizer, want = load_tokenizer(folder), oracle(tmp_path / "out")
    texts = [*TEXTS, "[unused9]系统：[unused10][unused9]用户：a[PAD]b", "x [unused10] y"]
    same_ids(tokenizer, want, texts)
    assert want.eos_token_id == tokenizer.eos_ids[0] == tokenizer.token_to_id("[unused10]")
    again = load_tokenizer(tmp_path / "out")
    assert (again.begin, again.boundary, again.eos_ids) == ((1,), 1, tokenizer.eos_ids)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert want.encode("the model", add_special_tokens=False) == raw.encode("the model")


def test_transformers_reads_a_tokenizer_model_alike(tmp_path):
    """Its generic reader, and Llama's, but for a leading space that Llama's drops."""
    folder = write(tmp_path / "t", **LLAMA)
    for config in (
        {"tokenizer_class": "PreTrainedTokenizerFast", **END},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, **END, "add_bos_token": True},
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        kept = [text for text in TEXTS if not text.startswith(" ")]
        same_ids(load_tokenizer(folder), oracle(folder), [*kept, "the </s>[unused9]model"])
