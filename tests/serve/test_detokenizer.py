"""What may be sent of an answer: nothing of a stop string, and texts as they are in one piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pangu_jax.data.chat import Reply
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.decode.engine import TokenDelta
from pangu_jax.serve.detokenizer import Continuation, Part, Stops, TextStreamer

BYTES = ByteTokenizer()


def cut(text, stops):
    """Character by character, without a buffer: the text before the first stop to be complete."""
    for end in range(len(text) + 1):
        ends = [s for s in stops if text[:end].endswith(s)]
        if ends:
            return text[: end - max(map(len, ends))], True
    return text, False


TEXT = st.text("ab", max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(TEXT, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_a_text_ends_before_its_first_stop_string_however_it_is_broken(parts, stops):
    here, want = Stops(stops), cut("".join(parts), stops)
    given_, said = "", ""
    for part in parts:
        said += part
        given_ += here.push(part)
        # Whatever comes next, what was given stays: it is part of every continuation's answer.
        for more in ("", *stops):
            assert cut(said + more, stops)[0].startswith(given_)
        longest = max((n for s in stops for n in range(len(s)) if said.endswith(s[:n])), default=0)
        assert here.hit or len(given_) >= len(said) - longest  # and no more is held than needed
    given_ += here.push("", final=True)
    assert (given_, here.hit) == want
    assert here.given == len(given_)


def delta(ids, end=None, scores=None):
    scores = np.arange(len(ids)) * -0.5 if scores is None else np.array(scores)
    none = np.zeros(len(ids))
    return TokenDelta(0, np.array(ids, np.int32), scores, none, none.astype(int), end)


def said(text, stops, size, end="length", decoded=None):
    """The parts of an answer of bytes, a few tokens at a time."""
    ids = [*text.encode(), *([256] if end == "stop" else [])]
    writer = TextStreamer(decoded or Continuation(BYTES, [256]), stops)
    parts, whole = [], Part()
    for start in range(0, len(ids), size):
        last = start + size >= len(ids)
        parts.append(writer.push(delta(ids[start : start + size], end if last else None)))
        whole.add(parts[-1])
        if whole.finish_reason is not None:
            break
    return parts, whole


@pytest.mark.parametrize("size", [1, 3, 99])
def test_a_stop_string_over_tokens_ends_an_answer_with_the_scores_of_what_is_sent(size):
    parts, whole = said("one. two END three", [" END", "zz"], size)
    assert (whole.text, whole.finish_reason) == ("one. two", "stop")
    assert "".join(token.text for token in whole.tokens) == whole.text
    assert [token.start for token in whole.tokens] == list(range(8))
    assert whole.count == len("one. two END")
    assert not any("E" in part.text or " " in part.text[8:] for part in parts)


def test_text_that_was_held_is_sent_when_no_stop_string_comes():
    parts, whole = said("a EN", [" END"], 1)
    assert [part.text for part in parts] == ["a", "", "", " EN"]
    assert (whole.finish_reason, "".join(t.text for t in whole.tokens)) == ("length", "a EN")


@pytest.mark.parametrize("size", [1, 2, 9])
def test_characters_of_many_tokens_and_an_unfinished_one(size):
    _, whole = said("é€", [], size, end="stop")
    assert (whole.text, whole.finish_reason, whole.count) == ("é€", "stop", 6)
    writer = TextStreamer(Continuation(BYTES, [256]), [])
    part = writer.push(delta([*"é".encode(), 0xE2, 256], "stop"))
    assert part.text == "é\ufffd" == "".join(token.text for token in part.tokens)


def test_stop_strings_are_looked_for_in_the_answer_alone():
    reply = Reply(BYTES, ("<think>", "</think>"))
    _, whole = said("<think>a. b</think>four. five", ["."], 4, decoded=reply)
    assert (whole.thought, whole.text, whole.finish_reason) == ("a. b", "four", "stop")
    assert "".join(token.text for token in whole.tokens) == "a. bfour"


def test_scores_that_are_no_numbers_are_an_error():
    with pytest.raises(ArithmeticError, match="token 65"):
        TextStreamer(Continuation(BYTES, [256]), []).push(delta([65], scores=[np.nan]))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer as Llama's: words with their space, bytes for what it has no token for."""
    words = ["<s>", "▁good", "▁day", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(["<s>"])
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    inner.save(str(path))
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ([1], [2, 1], " day good"),
        ([0], [1, 2], "good day"),  # the first word of a text has no space
        ([1, *(b + 3 for b in "🦙".encode())], [2], " day"),  # the prompt's own is not said again
        ([1, *(b + 3 for b in "🦙".encode())], [b + 3 for b in "é".encode()], "é"),
        ([1, *(b + 3 for b in "🦙".encode()[:2])], [b + 3 for b in "🦙".encode()[2:]], "🦙"),
        ([1, *(b + 3 for b in ("é" * 20).encode())], [2], " day"),  # a run longer than the tail
    ],
)
def test_an_answer_is_written_as_it_is_behind_its_prompt(pieces, prompt, answer, text):
    decoded = Continuation(pieces, prompt)
    found = [part for token in answer for _, part in decoded.push(token)]
    assert "".join([*found, *(part for _, part in decoded.finish())]) == text
