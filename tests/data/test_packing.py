"""Windows against loops over lists; every token predicted once; the cache."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import (
    BOUNDARY,
    PackedTokens,
    Tokens,
    cached_tokens,
    fingerprint,
    tokenize,
)
from pangu_jax.data.text import Document, documents, stdlib
from pangu_jax.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
TEXTS = st.lists(st.text("aé\n€", max_size=12), min_size=1, max_size=8).filter(any)


def named(texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


def loop_windows(texts, length):
    """One dict a flat token, cut into windows by counting; every field by its definition."""
    flat = []
    for text in texts:
        if text:
            document = [256, *text.encode()]
            for place, token in enumerate(document):
                rest = document[place + 1 :]
                flat.append((token, rest[0] if rest else None, place == 0))
    windows, window = [], []
    for token, following, first in flat[:-1]:
        begins = first or not window
        last = window[-1] if window else {"segments": 0, "positions": 0}
        window.append(
            {
                "tokens": token,
                "labels": 0 if following is None else following,
                "weights": 0.0 if following is None else 1.0,
                "segments": last["segments"] + 1 if begins else last["segments"],
                "positions": 0 if begins else last["positions"] + 1,
            }
        )
        if len(window) == length:
            windows.append(window)
            window = []
    if window:
        # The very last token fills a place when there is one; it predicts nothing.
        token, _, first = flat[-1]
        last = window[-1]
        window.append(
            {
                "tokens": token,
                "labels": 0,
                "weights": 0.0,
                "segments": last["segments"] + first,
                "positions": 0 if first else last["positions"] + 1,
            }
        )
        blank = {"tokens": 0, "labels": 0, "weights": 0.0, "segments": 0, "positions": 0}
        windows.append(window + [blank] * (length - len(window)))
    return windows


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_windows_are_those_of_loops(texts, length):
    source = PackedTokens(tokenize(named(texts), BYTES), length)
    want = loop_windows(texts, length)
    assert len(source) == len(want)
    for index, rows in enumerate(want):
        window = source[index]
        assert set(window) == {"tokens", "labels", "weights", "segments", "positions"}
        for name, array in window.items():
            assert array.dtype == (np.float32 if name == "weights" else np.int32)
            assert array.tolist() == [row[name] for row in rows], name
    each = [1 + np.count_nonzero(np.diff([row["segments"] for row in rows])) for rows in want]
    assert source.most_documents == max(each)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_every_token_of_every_document_is_predicted_exactly_once(texts, length):
    source = PackedTokens(tokenize(named(texts), BYTES), length)
    predicted = []
    for index in range(len(source)):
        window = source[index]
        predicted += window["labels"][window["weights"] == 1].tolist()
        assert set(np.unique(window["weights"])) <= {0.0, 1.0}
    assert predicted == list("".join(texts).encode())  # in order, each byte once, no boundary
    assert source.bytes == len(predicted)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_no_document_sees_another(texts, length):
    """What a query may attend to, by the mask rule, is the document's own text before it."""
    source = PackedTokens(tokenize(named(texts), BYTES), length)
    whole = [[256, *text.encode()] for text in texts if text]
    flat = [(d, p) for d, ids in enumerate(whole) for p in range(len(ids))]
    for index in range(len(source)):
        window, first = source[index], index * length
        segments, positions = window["segments"], window["positions"]
        for t in range(min(length, len(flat) - first)):
            seen = (segments == segments[t]) & (segments > 0) & (positions <= positions[t])
            document, place = flat[first + t]
            begin = max(first, first + t - place)
            assert np.flatnonzero(seen).tolist() == list(range(begin - first, t + 1))
            context = [whole[document][flat[first + s][1]] for s in np.flatnonzero(seen)]
            assert context == window["tokens"][seen].tolist()


class Numbers:
    """A tokenizer of the given vocabulary whose ids are written in the text."""

    eos_ids = ()
    open_ids = frozenset()

    def __init__(self, vocab_size, digest="numbers"):
        self.vocab_size, self.digest, self.name = vocab_size, digest, digest
        self.boundary = vocab_size - 1
        self.encoded = 0

    def encode(self, text):
        self.encoded += 1
        return [int(word) for word in text.split()]


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [
        (256, np.uint8),
        (257, np.uint16),
        (2**16, np.uint16),
        (2**16 + 1, np.uint32),
        (153_600, np.uint32),
    ],
)
def test_ids_are_kept_in_the_smallest_type(tmp_path, vocab, dtype):
    documents = named([f"0 1 {vocab - 1}", "", "7"])
    tokens = tokenize(documents, Numbers(vocab))
    assert tokens.ids.dtype == dtype
    assert tokens.ids.tolist() == [vocab - 1, 0, 1, vocab - 1, vocab - 1, 7]
    assert tokens.starts.tolist() == [0, 4]
    again = cached_tokens(lambda: documents, Numbers(vocab), tmp_path)
    assert again.ids.dtype == dtype and again.ids.tolist() == tokens.ids.tolist()


def test_progress_counts_bytes_of_text():
    seen = []
    tokens = tokenize(named(["é", "", "ab"]), BYTES, progress=seen.append)
    assert seen == [2, 4] and tokens.bytes == 4


def test_nothing_to_pack_is_refused(tmp_path):
    with pytest.raises(InputError, match="no text"):
        tokenize(named(["", ""]), BYTES)
    with pytest.raises(InputError, match="no text"):
        cached_tokens(list, BYTES, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="window length"):
        PackedTokens(tokenize(named(["a"]), BYTES), 0)


def test_a_document_of_no_tokens_is_one_window_without_weight():
    source = PackedTokens(tokenize(named([" "]), Numbers(10)), 4)
    assert len(source) == 1
    assert source[0]["weights"].sum() == 0
    assert source[0]["tokens"].tolist() == [9, 0, 0, 0]
    for beyond in (1, 2):
        with pytest.raises(IndexError):
            source[beyond]
    full = PackedTokens(tokenize(named(["1 2 3 4 5 6 7 8"]), Numbers(10)), 4)
    assert len(full) == 2
    for beyond in (2, 3):  # also where no token is left over
        with pytest.raises(IndexError):
            full[beyond]


def test_cached_tokens_are_found_again_and_mapped(tmp_path):
    texts, tokenizer = named(["1 2 3", "4 5"]), Numbers(300)
    first = cached_tokens(lambda: texts, tokenizer, tmp_path / "new" / "folder")
    assert tokenizer.encoded == 2
    again = cached_tokens(lambda: iter(texts), tokenizer, tmp_path / "new" / "folder")
    assert tokenizer.encoded == 2
    assert isinstance(again.ids, np.memmap)
    plain = tokenize(texts, tokenizer)
    for tokens in (first, again):
        np.testing.assert_array_equal(tokens.ids, plain.ids)
        np.testing.assert_array_equal(tokens.starts, plain.starts)
        assert tokens.bytes == plain.bytes
        assert fingerprint(tokens) == fingerprint(plain)


def test_other_text_or_another_tokenizer_is_another_cache_entry(tmp_path):
    def cached(texts, digest="numbers", vocab=300):
        return cached_tokens(lambda: named(texts), Numbers(vocab, digest), tmp_path).ids.tolist()

    assert cached(["1 2", "3"]) == [299, 1, 2, 299, 3]
    assert cached(["1 23"]) == [299, 1, 23]
    assert cached(["1 2", "4"]) == [299, 1, 2, 299, 4]
    assert cached(["3", "1 2"]) == [299, 3, 299, 1, 2]
    assert cached(["1 2", "3"], vocab=301) == [300, 1, 2, 300, 3]  # another boundary alone
    assert cached(["1 2", "3"], vocab=70_000) == [69_999, 1, 2, 69_999, 3]
    count = len(list(tmp_path.iterdir()))
    cached(["1 2", "3"], digest="other")
    assert len(list(tmp_path.iterdir())) == count + 2


@pytest.mark.parametrize("damage", ["short", "empty", "missing", "npz"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    texts, tokenizer = named(["1 2 3", "4 5"]), Numbers(300)
    want = cached_tokens(lambda: texts, tokenizer, tmp_path).ids.tolist()
    (ids,), (npz,) = tmp_path.glob("*.ids"), tmp_path.glob("*.npz")
    if damage == "short":
        os.truncate(ids, 4)
    elif damage == "empty":
        os.truncate(ids, 0)
    elif damage == "missing":
        ids.unlink()
    else:
        os.truncate(npz, npz.stat().st_size // 2)
    assert cached_tokens(lambda: texts, tokenizer, tmp_path).ids.tolist() == want
    assert tokenizer.encoded == 4


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_tokens(lambda: named(["1", "2"]), Numbers(9), tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_of_ids_and_starts():
    base = Tokens(np.arange(6, dtype=np.uint16), np.array([0, 3]), 4)
    other_ids = Tokens(np.array([0, 1, 2, 3, 4, 6], np.uint16), base.starts, 4)
    other_starts = Tokens(base.ids, np.array([0, 2]), 4)
    assert len({fingerprint(t) for t in (base, other_ids, other_starts)}) == 3
    # Pinned, so that a run of an earlier version is known again.
    assert fingerprint(base) == "642766afd9d2329b"


@pytest.mark.long
def test_the_standard_library_is_predicted_byte_for_byte():
    found = [d for d in stdlib() if d.name.startswith("json/")]
    source = PackedTokens(tokenize(found, BYTES), 512)
    text = b"".join(
        source[i]["labels"][source[i]["weights"] > 0].astype(np.uint8).tobytes()
        for i in range(len(source))
    )
    assert text == b"".join(d.text.encode() for d in found)


def test_jsonl_documents_are_kept_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("ab", "c")))
    window = PackedTokens(tokenize(documents(path), BYTES), 8)[0]
    assert window["tokens"].tolist() == [256, 97, 98, 256, 99, 0, 0, 0]
    assert window["labels"].tolist() == [97, 98, 0, 99, 0, 0, 0, 0]
    assert window["segments"].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert window["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert window["weights"].tolist() == [1, 1, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("begin", "head"), [((256,), BOUNDARY), ((97,), "the begin token a"), ((), "")]
)
def test_documents_begin_as_prompts_do_where_that_is_asked_for(begin, head):
    tokenizer = dataclasses.replace(ByteTokenizer(), begin=begin)
    documents = [Document(t, t) for t in ("xy", "", "z")]
    found = tokenize(documents, tokenizer, as_prompts=True)
    assert found.ids.tolist() == [*begin, *b"xy", *begin, *b"z"]
    assert found.starts.tolist() == [0, len(begin) + 2]
    assert (found.head, found.bytes) == (head, 3)
    apart = tokenize(documents, tokenizer)  # in training the boundary separates them
    assert (apart.ids.tolist(), apart.head) == ([256, *b"xy", 256, *b"z"], BOUNDARY)


def test_a_begin_of_two_tokens_cannot_be_left_out_of_a_measurement():
    tokenizer = dataclasses.replace(ByteTokenizer(), begin=(1, 2))
    with pytest.raises(InputError, match="bytes puts 2 tokens before a text"):
        tokenize([Document("x", "x")], tokenizer, as_prompts=True)
