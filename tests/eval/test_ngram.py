"""The byte model against dictionaries; its probabilities sum to one; so it is on real source."""

import collections
import math

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.text import held_out, stdlib
from pangu_jax.eval.ngram import bits_per_byte, fit, fit_best, probabilities, size

TEXTS = [b"abracadabra, abracadabra!", b"a", b"", bytes([0, 255, 0, 255, 7]), b"the cat the hat"]


def dictionary_probability(texts, order, before, byte):
    """Witten and Bell's interpolation from counts in dictionaries, longest context last."""
    p = 1 / 256
    for length in range(order + 1):
        context = before[len(before) - length :]
        if len(context) < length:
            break
        follows = collections.Counter(
            text[i + length]
            for text in texts
            for i in range(len(text) - length)
            if text[i : i + length] == context
        )
        n, t = sum(follows.values()), len(follows)
        if n:
            p = (follows[byte] + t * p) / (n + t)
    return p


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_the_probabilities_are_those_of_dictionaries(order):
    model = fit(TEXTS, order)
    for text in (b"abra cat", b"\xff\x00a", b"zzz", b"the c", b"x"):
        want = [dictionary_probability(TEXTS, order, text[:i], text[i]) for i in range(len(text))]
        np.testing.assert_allclose(probabilities(model, text), want, rtol=1e-12)


def test_bits_are_summed_over_all_bytes_of_all_texts():
    texts = [b"abra", b"", b"the dog"]
    bits = [
        -math.log2(dictionary_probability(TEXTS, 3, text[:i], text[i]))
        for text in texts
        for i in range(len(text))
    ]
    assert bits_per_byte(fit(TEXTS, 3), texts) == pytest.approx(sum(bits) / 11, rel=1e-12)


@pytest.mark.parametrize("context", [b"", b"a", b"abr", b"xyz", b"zab", b"\xff\x00\xff"])
def test_after_any_context_the_probabilities_sum_to_one(context):
    model = fit(TEXTS)
    total = sum(probabilities(model, context + bytes([byte]))[-1] for byte in range(256))
    assert total == pytest.approx(1, abs=1e-12)


def test_the_size_counts_different_strings_of_each_length():
    want = sum(
        len({text[i : i + n] for text in TEXTS for i in range(len(text) - n + 1)})
        for n in range(1, 5)
    )
    assert size(fit(TEXTS)) == want


def stdlib_parts():
    """Every seventh file of the standard library, split as the experiment splits."""
    training, testing = [], []
    for document in list(stdlib())[::7]:
        part = testing if held_out(document, 0.1) else training
        part.append(document.text.encode())
    return training, testing


@pytest.mark.slow
def test_higher_orders_help_on_real_source():
    """The whole library, 3.11: 4.47, 3.36, 2.49, 2.03 bits at orders 0 to 3."""
    training, testing = stdlib_parts()
    scores = [bits_per_byte(fit(training, order), testing) for order in (0, 1, 2, 3)]
    print(f"bits per byte at orders 0 to 3: {scores}")
    assert scores == sorted(scores, reverse=True)
    assert 1.8 < scores[3] < 2.5


@pytest.mark.long
def test_on_real_source_too_the_probabilities_are_those_of_dictionaries():
    training, testing = stdlib_parts()
    training, text = training[:8], testing[0][:3000]
    follows = [collections.defaultdict(collections.Counter) for _ in range(4)]
    for document in training:
        for at, byte in enumerate(document):
            for length in range(min(at, 3) + 1):
                follows[length][document[at - length : at]][byte] += 1
    want = []
    for at, byte in enumerate(text):
        p = 1 / 256
        for length in range(min(at, 3) + 1):
            seen = follows[length].get(text[at - length : at])
            if seen:
                p = (seen[byte] + len(seen) * p) / (seen.total() + len(seen))
        want.append(p)
    np.testing.assert_allclose(probabilities(fit(training), text), want, rtol=1e-12)


@pytest.mark.long
def test_the_best_order_is_that_of_the_held_out_texts():
    training = [text[:2000] for text in stdlib_parts()[0][:21]]
    bits = dict.fromkeys(range(1, 4), 0.0)
    for fold in range(10):
        held = training[fold::10]
        rest = [text for i, text in enumerate(training) if i % 10 != fold]
        for order in bits:
            bits[order] += bits_per_byte(fit(rest, order), held) * len(b"".join(held))
    best = min(bits, key=bits.get)
    model = fit_best(training, range(1, 4))
    assert model.order == best
    text = training[0]
    np.testing.assert_array_equal(
        probabilities(model, text), probabilities(fit(training, best), text)
    )
    # Text of independent letters: any context is one too many, however well it is remembered.
    draw = np.random.default_rng(0)
    letters = [bytes(draw.integers(97, 123, 300, np.uint8)) for _ in range(3)]
    assert fit_best(letters).order == fit_best([b"".join(letters), b""]).order == 1


def test_nothing_to_fit_or_measure_is_refused():
    with pytest.raises(InputError, match="no text"):
        fit([b"", b""])
    with pytest.raises(InputError, match="no text"):
        bits_per_byte(fit([b"a"]), [b""])
    with pytest.raises(InputError, match="order"):
        fit([b"abc"], 8)
