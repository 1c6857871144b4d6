"""Texts and pairs between special tokens, cut so that these stay."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import MANY, encode_for_decoder, encode_for_encoder
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "##s"]
CLS, SEP, A, B, C, D, E, S = 2, 3, 4, 5, 6, 7, 8, 9


def word_pieces(folder, template=True):
    """A tokenizer.json as BERT has; it asks for truncation and padding, which must not be done."""
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    if template:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    inner.add_special_tokens(WORDS[:4])
    inner.enable_truncation(5)
    inner.enable_padding(length=12)
    inner.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_a_text_and_its_special_tokens(tmp_path):
    tokenizer = word_pieces(tmp_path)
    texts = ["A  bs", "", "x", "a b c d e"]
    assert [tuple(found[:3]) for found in encode_for_encoder(tokenizer, texts, 6)] == [
        ([CLS, A, B, S, SEP], [0] * 5, False),
        ([CLS, SEP], [0] * 2, False),
        ([CLS, 1, SEP], [0] * 3, False),
        ([CLS, A, B, C, D, SEP], [0] * 6, True),
    ]
    assert tokenizer.begin == (CLS,) and tokenizer.eos_ids == (SEP,)
    assert tokenizer.encode("a b c d e a b") == [A, B, C, D, E, A, B]  # which nobody cut
    many = list(encode_for_encoder(tokenizer, ["a"] * MANY + ["b"], 3))
    assert many[0].ids == [CLS, A, SEP] and many[MANY].ids == [CLS, B, SEP] and len(many) == 257


@pytest.mark.parametrize(
    ("pair", "length", "ids", "types"),
    [
        (("a b", "c"), 9, [CLS, A, B, SEP, C, SEP], [0, 0, 0, 0, 1, 1]),
        (("a b c d", "e"), 6, [CLS, A, B, SEP, E, SEP], [0, 0, 0, 0, 1, 1]),
        (("e", "a b c d"), 6, [CLS, E, SEP, A, B, SEP], [0, 0, 0, 1, 1, 1]),
        (("a b c", "c d e"), 7, [CLS, A, B, SEP, C, D, SEP], [0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_of_a_pair_the_longer_is_cut(pair, length, ids, types, tmp_path):
    found = next(encode_for_encoder(word_pieces(tmp_path), [pair], length))
    assert found[:3] == (ids, types, length < 9)


def test_bytes_begin_with_their_boundary():
    assert [
        tuple(found[:3]) for found in encode_for_encoder(ByteTokenizer(), ["ab", "abc"], 3)
    ] == [
        ([256, 97, 98], [0] * 3, False),
        ([256, 97, 98], [0] * 3, True),
    ]


def plain(tokenizer, texts, length, prefix="", append_eos=False):
    found = [
        *encode_for_decoder(
            tokenizer, texts, length, prefixes=[prefix] * len(texts), append_eos=append_eos
        )
    ]
    assert all(item.types == [0] * len(item.ids) for item in found)
    return [(item.ids, item.cut, item.prefix) for item in found]


@pytest.mark.parametrize("append_eos", [True, False])  # there is one anyway
def test_what_a_decoder_reads(append_eos, tmp_path):
    tokenizer = word_pieces(tmp_path)
    assert plain(tokenizer, ["c d", "", "c d e"], 6, "a b ", append_eos) == [
        ([CLS, A, B, C, D, SEP], False, 3),
        ([CLS, A, B, SEP], False, 3),
        ([CLS, A, B, C, D, SEP], True, 3),
    ]
    assert plain(tokenizer, ["c"], 4, "a b d ", append_eos) == [([CLS, A, B, SEP], True, 3)]
    assert plain(tokenizer, [" c"], 9, "a b", append_eos) == [([CLS, A, B, C, SEP], False, 3)]
    assert plain(tokenizer, ["d"], 9, "a b", append_eos) == [
        ([CLS, A, 1, SEP], False, 2)
    ]  # "bd" is both
    assert plain(tokenizer, ["a"] * MANY + ["b"], 3, append_eos=append_eos)[-1] == (
        [CLS, B, SEP],
        False,
        0,
    )


def test_what_a_decoder_reads_without_special_tokens(tmp_path):
    tokenizer = word_pieces(tmp_path, template=False)
    assert tokenizer.begin == ()
    assert plain(tokenizer, ["a b", ""], 9) == [([A, B], False, 0), ([CLS], False, 0)]
    assert plain(tokenizer, ["a b", ""], 2, append_eos=True) == [
        ([A, SEP], True, 0),
        ([SEP], False, 0),
    ]
    assert plain(tokenizer, ["a b"], 9, "c") == [([1, B], False, 0)]  # "ca" is one word
    assert plain(ByteTokenizer(), ["c", ""], 3, "ab") == [
        ([256, 97, 98], True, 3), ([256, 97, 98], False, 3)]  # fmt: skip
    with pytest.raises(InputError, match=r"cannot be cut to 1 tokens: .* at least 2"):
        plain(ByteTokenizer(), ["a"], 1)


@pytest.mark.parametrize(
    ("texts", "length", "template", "said"),
    [
        (["a"], 2, True, "texts cannot be cut to 2 tokens.* at least 3"),
        ([("a", "b")], 4, True, "texts cannot be cut to 4 tokens.* at least 5"),
        (["a"], 9, False, r"tokenizer.json puts no special tokens around a text, such as \[CLS\]"),
    ],
)
def test_what_cannot_be_marked(texts, length, template, said, tmp_path):
    with pytest.raises(InputError, match=said):
        list(encode_for_encoder(word_pieces(tmp_path, template), texts, length))
    with pytest.raises(InputError, match="no template for pairs"):
        list(encode_for_encoder(ByteTokenizer(), [("a", "b")], 9))
    with pytest.raises(InputError, match="cannot be cut to 1 tokens"):
        list(encode_for_encoder(ByteTokenizer(), ["a"], 1))


def test_a_word_that_there_is_no_token_for(tmp_path):
    word_pieces(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "[GONE]"'))
    tokenizer = load_tokenizer(tmp_path)
    for encode in (tokenizer.encode, lambda text: list(encode_for_encoder(tokenizer, [text], 5))):
        with pytest.raises(InputError, match=r"tokenizer\.json cannot encode a text: .*\[UNK\]"):
            encode("x")
    path.write_text(path.read_text().replace('"a"', '"y"'))
    with pytest.raises(InputError, match="cannot encode a text"):
        load_tokenizer(tmp_path)  # which looks at what is put before a text
