"""Byte and file tokenizers, their special ids, and text that comes token by token."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from pangu_jax.checkpoint import store
from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import prompt_ids, render
from pangu_jax.data.checkpoint_chat_template import load_template
from pangu_jax.data.tokenizer import (
    RUN,
    ByteTokenizer,
    StreamDecoder,
    check_vocabulary,
    load_tokenizer,
)

SAMPLE = [
    "def read(self):\n    return self.größe, 'naïve café'\n",
    "a b  c 你好 😀 zoë",
    "self self",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level():
    """As GPT-2 and Qwen: bytes stand for themselves as printable characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def byte_fallback():
    """As Llama 2 and Pangu: words begin with a mark, unknown characters become single bytes."""
    pieces = ["▁", "▁a", "a", "b", "▁self", "self", "é", "ab", "你", "."]
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    merges = [("▁", "a"), ("a", "b")]
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def metaspace():
    """As T5 and some SentencePiece exports."""
    names = ["<unk>", "</s>", "▁", "▁a", "a", "b", "▁b", "."]
    tokenizer = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def word_piece():
    """As BERT: pieces inside a word begin with ##, spaces are put between words."""
    names = ["[UNK]", "</s>", "read", "##ing", "##s", "self", ".", ",", "a"]
    tokenizer = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


MAKERS = {f.__name__: f for f in (byte_level, byte_fallback, metaspace, word_piece)}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One of each kind, as loaded from its file."""
    folder = tmp_path_factory.mktemp("tokenizers")
    loaded = {"bytes": ByteTokenizer()}
    for name, make in MAKERS.items():
        (folder / name).mkdir()
        make().save(str(folder / name / "tokenizer.json"))
        loaded[name] = load_tokenizer(folder / name)
    return loaded


def save(folder, inner, **files):
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def test_bytes_are_their_own_ids():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer == ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.boundary, tokenizer.eos_ids) == (264, 256, (256,))
    assert tokenizer.encode("aé\n€") == [97, 0xC3, 0xA9, 10, 0xE2, 0x82, 0xAC]
    assert tokenizer.decode([256, 97, 0xC3, 0xA9, 263]) == "aé"
    assert tokenizer.decode([97, 0xC3, 98, 0xFF]) == "a\ufffdb\ufffd"
    assert tokenizer.decode(np.array([104, 105])) == "hi"


@pytest.mark.parametrize("kind", ["bytes", "byte_level"])
def test_any_text_comes_back(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for text in [*SAMPLE, "", " ", "\0 \r\n\t", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", " leading and trailing "]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_special_tokens_are_added_or_cut(tmp_path):
    inner = byte_fallback()
    inner.enable_truncation(3)
    inner.enable_padding(length=9)
    tokenizer = load_tokenizer(save(tmp_path / "t", inner))
    assert tokenizer.decode(tokenizer.encode("a b a b a b")) == "a b a b a b"
    assert not {0, 1, 2} & set(tokenizer.encode("a b 😀"))
    assert tokenizer.decode([1, *tokenizer.encode("a b"), 2]) == "a b"


IDS = st.lists(st.integers(0, 310), max_size=14)


@pytest.mark.long(but=2)
@pytest.mark.parametrize("kind", ["bytes", *MAKERS])
@settings(max_examples=300, deadline=None)
@given(ids=IDS)
def test_streamed_pieces_join_to_the_decoded_text(tokenizers, kind, ids):
    tokenizer = tokenizers[kind]
    ids = [i % tokenizer.vocab_size for i in ids]
    check_stream(tokenizer, ids)


# What random ids seldom hit: runs of single bytes, broken ones, specials inside, spaces at borders.
LLAMA_BYTES = [3 + byte for byte in "é😀你".encode()]
HARD = [
    LLAMA_BYTES,
    [260, *LLAMA_BYTES, 3 + 0xFF, 261, 262],  # whole characters, then a broken one: all are lost
    [3 + 65, 2, 3 + 0xFF, 260, 261],  # a special token inside a run of bytes
    [260, 2, 260, 1, 259, 260],  # spaces after special tokens
    [259, 259, 260, 259, 261],
    [3 + 10] * 5 + [261],
]


@pytest.mark.parametrize("ids", HARD)
def test_byte_runs_and_spaces_are_streamed_exactly(tokenizers, ids):
    check_stream(tokenizers["byte_fallback"], ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 13, 68, 198, 172, 258, 259, 260, 261, 263]), max_size=9))
def test_single_bytes_between_words_are_streamed_exactly(tokenizers, ids):
    check_stream(tokenizers["byte_fallback"], ids)


def check_stream(tokenizer, ids):
    stream, given_text = StreamDecoder(tokenizer), ""
    for token in ids:
        piece = stream.push(token)
        assert not piece.endswith("\ufffd")
        given_text += piece
    assert given_text + stream.finish() == tokenizer.decode(ids)
    assert stream.finish() == ""


def test_finished_characters_are_not_held_back(tokenizers):
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(byte) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    stream = StreamDecoder(tokenizers["byte_fallback"])
    ids = tokenizers["byte_fallback"].encode("ab a.")
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == "ab a." and stream.finish() == ""
    stream = StreamDecoder(tokenizers["byte_fallback"])
    assert [stream.push(t) for t in (260, *LLAMA_BYTES, 261)][-1] == "é😀你a"


def test_special_ids_come_from_the_files_beside(tmp_path):
    inner = byte_fallback()

    def ids(**files):
        for old in (tmp_path / "t").glob("*_config.json"):
            old.unlink()
        (tmp_path / "t" / "config.json").unlink(missing_ok=True)
        found = load_tokenizer(save(tmp_path / "t", inner, **files))
        return found.boundary, found.eos_ids

    assert ids() == (1, (2,))  # by their common names
    assert ids(generation_config={"bos_token_id": 5, "eos_token_id": [7, 8]}) == (5, (7, 8))
    assert ids(config={"bos_token_id": 5, "eos_token_id": 7}) == (5, (7,))
    assert ids(tokenizer_config={"bos_token": "<unk>", "eos_token": {"content": "a"}}) == (
        0,
        (261,),
    )
    both = {"generation_config": {"eos_token_id": 9}, "config": {"bos_token_id": 4}}
    assert ids(**both) == (4, (9,))
    # Qwen has no begin of text: its end of text heads documents.
    assert ids(tokenizer_config={"bos_token": None, "eos_token": "</s>"}) == (2, (2,))
    # Ids that the tokenizer lacks, and what is no id, are as if they were not there.
    assert ids(config={"bos_token_id": 9999, "eos_token_id": -1}) == (1, (2,))
    assert ids(config={"bos_token_id": 10**12, "eos_token_id": [2**64]}) == (1, (2,))
    assert ids(config={"bos_token_id": "1", "eos_token_id": [None, True, 6]}) == (6, (6,))
    assert load_tokenizer(tmp_path / "t" / "tokenizer.json").boundary == 6


def begins(inner, prefix="<s>"):
    inner.post_processor = processors.TemplateProcessing(
        single=f"{prefix} $A </s>",
        pair=f"{prefix} $A $B",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return inner


ADDED = {"add_bos_token": True, "bos_token": "<s>"}
BEGIN = [  # post-processor, tokenizer_config.json, a run of ours, what precedes a prompt
    (None, {}, False, ()),
    (None, {"add_bos_token": False, "bos_token": "<s>"}, False, ()),
    (None, ADDED, False, (1,)),
    (None, {**ADDED, "bos_token": {"content": "</s>"}}, False, (2,)),
    (None, {"add_bos_token": True}, False, (1,)),
    ("<s>", {}, False, (1,)),
    ("<s>", {"add_bos_token": False}, False, (1,)),  # transformers keeps to the post-processor
    ("<s> </s>", ADDED, False, (1, 2)),
    (None, {}, True, (1,)),
    ("<s> </s>", {"bos_token": "</s>"}, True, (2,)),
]


@pytest.mark.parametrize(("processor", "config", "run", "want"), BEGIN)
def test_a_prompt_begins_as_the_files_say_and_as_training_did(
    processor, config, run, want, tmp_path
):
    inner = byte_fallback() if processor is None else begins(byte_fallback(), processor)
    folder = save(tmp_path / "t", inner, tokenizer_config=config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN).write_text("{}")
    if run:
        assert load_tokenizer(folder, checkpoint=tmp_path / "run").begin == want
        (folder / RUN).write_text("{}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.begin == want
    assert tokenizer.encode("a b")[:1] == [260]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_begin_that_a_template_writes_is_tokenized_with_the_text(scheme, tmp_path):
    """With "first" no space follows <s>, as transformers has it: it stood at the text's start."""
    inner = byte_fallback()
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    folder = save(tmp_path / "t", inner, tokenizer_config={"bos_token": "<s>"})
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    template = load_template(folder, tokenizer)
    text = render([{"role": "user", "content": "a"}], template)
    assert text == "<s>a"
    a = tokenizer.token_to_id("a" if scheme == "first" else "▁a")
    assert prompt_ids(text, tokenizer, template) == [1, a]


def test_qwen_puts_nothing_before_a_prompt(tmp_path):
    inner = byte_level()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {"add_bos_token": False, "bos_token": None, "eos_token": "<|endoftext|>"}
    tokenizer = load_tokenizer(save(tmp_path / "t", inner, tokenizer_config=config))
    assert (tokenizer.begin, tokenizer.boundary) == ((), 0)


def test_the_name_of_a_runs_file_is_the_stores():
    assert RUN == store.MODEL


def test_the_vocabulary_counts_added_tokens_and_gaps(tmp_path):
    inner = byte_fallback()
    size = inner.get_vocab_size()
    inner.add_tokens([AddedToken("extra", normalized=False)])
    tokenizer = load_tokenizer(save(tmp_path / "t", inner))
    assert tokenizer.vocab_size == size + 1
    # An id past the model's vocabulary is refused where a text has it, and named.
    check_vocabulary(tokenizer.encode("a b self"), tokenizer, size)
    check_vocabulary(tokenizer.encode("a extra"), tokenizer, size + 1)
    with pytest.raises(
        InputError, match=rf"tokenizer\.json gives 'extra' the id {size}, .* at {size - 1}"
    ):
        check_vocabulary(tokenizer.encode("a extra"), tokenizer, size)
    check_vocabulary([], tokenizer, 1)
    check_vocabulary(np.array([256, 97], np.uint16), ByteTokenizer(), 257)
    with pytest.raises(InputError, match=r"bytes gives 'a' the id 97, .* at 96"):
        check_vocabulary(ByteTokenizer().encode("aa"), ByteTokenizer(), 97)


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path):
    one = load_tokenizer(save(tmp_path / "one", byte_fallback()))
    two = load_tokenizer(save(tmp_path / "two", byte_fallback()))
    other = load_tokenizer(save(tmp_path / "other", metaspace()))
    assert one.digest == two.digest != other.digest
    assert len({one.digest, other.digest, ByteTokenizer().digest}) == 3


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json at .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no tokenizer\.json at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    nothing = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(InputError, match="begins or ends a text"):
        load_tokenizer(save(tmp_path / "plain", nothing))
    with pytest.raises(InputError, match=r"config\.json holds no JSON object"):
        load_tokenizer(save(tmp_path / "list", nothing, config=[1]))
