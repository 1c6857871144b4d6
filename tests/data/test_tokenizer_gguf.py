"""The tokenizer in a GGUF file's metadata: ids, begins, ends, templates, what is refused."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.data.tokenizer_gguf import tokenizer_files

TEXTS = [
    "It's 2024, and  12345 things cost 3.50\u20ac\n\n  \tnext line",
    "  Leading spaces; CAN'T stop...  trailing  ",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 e\u0301",
    "x = [i**2 for i in range(10)]\r\n\r\n    return x\n",
    "<|im_start|>user\nHi<|im_end|> <think>12</think>",
]  # fmt: skip
CORPUS = [*TEXTS, "the quick brown fox jumps over the lazy dog 's 't 're " * 3, "12 123 1234 20"]
# As tokenizer.json of GPT-2, SmolLM2, Llama 3 and Qwen2 have them.
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def byte_level(**changes):
    usual = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**usual, "use_regex": False, **changes}


def split(digits):
    pattern = {"Regex": rf"{SHORT}|{LETTERS}|{digits}|{REST}"}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


DIGITS = {"type": "Digits", "individual_digits": True}
PUBLISHED = {
    "gpt-2": ([byte_level(use_regex=True)], None),
    "smollm": ([DIGITS, byte_level(use_regex=True)], None),
    "llama-bpe": ([split(r"\p{N}{1,3}"), byte_level()], None),
    "qwen2": ([split(r"\p{N}"), byte_level(trim_offsets=False)], {"type": "NFC"}),
}


def published(cut):
    """A byte-level tokenizer cut as published, with special and plain added tokens."""
    inner = tokenizers.Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    steps, normalizer = PUBLISHED[cut]
    values = json.loads(inner.to_str())
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    values["normalizer"] = normalizer
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def fields_of(inner, cut):
    """Its metadata as llama.cpp's converter writes it."""
    values = json.loads(inner.to_str())
    vocab = inner.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    added = {token["content"]: token["special"] for token in values["added_tokens"]}
    kinds = [1 if t not in added else 3 if added[t] else 4 for t in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in values["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


def read(fields, folder):
    for name, content in tokenizer_files(fields, folder / "m.gguf").items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


@pytest.mark.parametrize("cut", PUBLISHED)
def test_byte_pairs_give_the_ids_of_the_published_tokenizer(cut, tmp_path):
    inner = published(cut)
    found = read(fields_of(inner, cut), tmp_path)
    for text in TEXTS:
        assert found.encode(text) == inner.encode(text, add_special_tokens=False).ids
        assert found.decode(found.encode(text)) == inner.decode(found.encode(text))
    assert found.begin == () and found.eos_ids == (2,) and found.boundary == 1
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages[0]['content'] }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_cuts_differ_where_they_should(tmp_path):
    inner = published("gpt-2")
    ids = []
    for cut in PUBLISHED:
        (tmp_path / cut).mkdir()
        found = read(fields_of(inner, cut), tmp_path / cut)
        ids.append([tuple(found.encode(text)) for text in (*TEXTS, *CORPUS)])
    assert all(a != b for i, a in enumerate(ids) for b in ids[:i])


def test_the_begin_is_put_where_it_is_asked_for(tmp_path):
    inner = published("llama-bpe")
    fields = fields_of(inner, "llama-bpe")
    for asked, begin in ((True, (1,)), (False, ()), (None, (1,))):  # Llama 3 has one by itself
        fields["tokenizer.ggml.add_bos_token"] = asked
        if asked is None:
            del fields["tokenizer.ggml.add_bos_token"]
        assert read(fields, tmp_path).begin == begin
        ids = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a").ids
        assert ids[: len(begin)] == list(begin)
    fields["tokenizer.ggml.bos_token_id"] = 0
    fields["tokenizer.ggml.eot_token_id"] = 3
    found = read(fields, tmp_path)
    assert found.begin == (0,) and found.eos_ids == (2, 3)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_its_own_ids(prefix, tmp_path):
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=360, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=prefix, minloglevel=2, bos_id=1, eos_id=2, unk_id=0,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [p.piece for p in proto.pieces],
        "tokenizer.ggml.scores": [float(p.score) for p in proto.pieces],
        "tokenizer.ggml.token_type": [int(p.type) for p in proto.pieces],
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    found = read(fields, tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    for text in TEXTS:
        assert found.encode(text) == reference.encode(text)
        assert found.decode(found.encode(text)) == reference.decode(reference.encode(text))
    assert found.begin == (1,)  # such files begin every text unless they say otherwise
    fields["tokenizer.ggml.add_bos_token"] = False
    assert read(fields, tmp_path).begin == ()


WRONG = {
    "kind 'bert'": {"model": "bert"},
    "cut 'command-r'": {"pre": "command-r"},
    "cut None": {"pre": None},
    "lacks the list tokenizer.ggml.tokens": {"tokens": None},
    "token_type is of 2 tokens": {"token_type": [1, 1]},
    "lacks the list tokenizer.ggml.merges": {"merges": [1]},
    "merges do not fit": {"merges": ["zzz yyy"]},
    "eos_token_id is 10000": {"eos_token_id": 10000},
    "the token 'a' twice": {"tokens": ["a", "a"]},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_named(sentence, tmp_path):
    fields = fields_of(published("smollm"), "smollm")
    fields |= {f"tokenizer.ggml.{name}": value for name, value in WRONG[sentence].items()}
    with pytest.raises(InputError, match=sentence) as error:
        tokenizer_files(fields, tmp_path / "m.gguf")
    assert "m.gguf" in str(error.value)
