"""One token a word, and tokens that are added: what files give when they are opened again."""

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.data.word_tokenizer import files_with_tokens, opened, word_files

TEXTS = ["Bob is a yerpus.", "7 6 * 1 ( 2 )"]


def test_words_and_punctuation_are_tokens():
    with opened(word_files(TEXTS, ["<|thought|>"])) as tokenizer:
        ids = tokenizer.encode("Bob is a\nyerpus.")
        assert len(ids) == 5 and tokenizer.decode(ids) == "Bob is a yerpus ."
        assert len(tokenizer.encode("7 6 * 1 ( 2 )")) == 7
        unknown = tokenizer.encode("Alice is 9")
        assert unknown[0] == unknown[2] == tokenizer.token_to_id("<|unknown|>")
        named = tokenizer.token_to_id("<|thought|>")
        assert tokenizer.encode("a<|thought|>a")[1] == named
        assert tokenizer.decode([*ids[:1], named, 0]) == "Bob"
        assert tokenizer.vocab_size == 2 + 12 + 1
        assert tokenizer.boundary == 0 and tokenizer.eos_ids == tokenizer.begin == (0,)


def test_files_are_the_same_each_time_and_for_texts_in_any_order(tmp_path):
    files = word_files(TEXTS)
    assert files == word_files(TEXTS[::-1])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with opened(files) as tokenizer:
        assert load_tokenizer(tmp_path).digest == tokenizer.digest


def test_added_tokens_follow_all_others_and_keep_their_ids():
    with opened(word_files(TEXTS, ["<|one|>"])) as tokenizer:
        more = files_with_tokens(tokenizer, ["<|two|>", "<|one|>"])
        size, one, ids = (
            tokenizer.vocab_size,
            tokenizer.token_to_id("<|one|>"),
            tokenizer.encode(TEXTS[0]),
        )
    with opened(more) as tokenizer:
        assert tokenizer.token_to_id("<|one|>") == one
        assert tokenizer.token_to_id("<|two|>") == size == tokenizer.vocab_size - 1
        assert tokenizer.encode(TEXTS[0]) == ids and tokenizer.eos_ids == (0,)


def test_what_has_no_words_or_names_is_refused():
    with pytest.raises(InputError, match="at least one word"):
        word_files([" \n"])
    with pytest.raises(InputError, match="tokenizer bytes"):
        files_with_tokens(ByteTokenizer(), ["<|one|>"])
