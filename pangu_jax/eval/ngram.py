"""The control: an n-gram byte model."""

import dataclasses

import numpy as np

from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class ByteModel:
    """Counts of byte strings of length 1 to order + 1 in the training text.

    Attributes:
      order: number of earlier bytes that a prediction depends on.
      counts: for each length n = 1 .. order + 1, the sorted keys of the strings of n bytes (uint64,
        big endian) and the count of each.
      contexts: for each length n = 0 .. order, the sorted keys of the strings of n bytes that were
        followed by something, the counts, and the numbers of distinct bytes that followed.
    """

    order: int
    counts: tuple[tuple[np.ndarray, np.ndarray], ...]
    contexts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


def fit(texts: list[bytes], order: int = 3) -> ByteModel:
    """Counts the texts; each text's first bytes are predicted from shorter contexts.

    Raises:
      InputError: there is no text, or `order` is not between 0 and 7.
    """
    if not 0 <= order <= 7:
        raise InputError(f"the order of a byte model must be 0 to 7, got {order}")
    if not any(texts):
        raise InputError("there is no text to fit a byte model to")
    counts, contexts = [], []
    for length in range(1, order + 2):
        keys = np.concatenate([_strings(text, length) for text in texts])
        unique, number = np.unique(keys, return_counts=True)
        counts.append((unique, number))
        context, first, kinds = np.unique(unique >> np.uint64(8), return_index=True,
                                          return_counts=True)  # fmt: skip
        contexts.append((context, np.add.reduceat(number, first), kinds))
    return ByteModel(order, tuple(counts), tuple(contexts))


def fit_best(texts: list[bytes], orders: range = range(1, 7)) -> ByteModel:
    """A model of the texts, of the order that predicts each tenth of them best from the others.

    Raises:
      InputError: there is no text.
    """
    texts = [text for text in texts if text]
    if len(texts) == 1:
        size = -(-len(texts[0]) // 10)
        texts = [texts[0][start : start + size] for start in range(0, len(texts[0]), size)]
    if len(texts) < 2:
        return fit(texts, order=orders[0])
    bits = dict.fromkeys(orders, 0.0)
    for fold in range(min(10, len(texts))):
        held, rest = texts[fold::10], list(texts)
        del rest[fold::10]
        largest = fit(rest, order=orders[-1])
        for order in orders:
            mean = bits_per_byte(_shorter(largest, order), held)
            bits[order] += mean * sum(len(text) for text in held)
    return fit(texts, order=min(orders, key=bits.__getitem__))


def _shorter(model: ByteModel, order: int) -> ByteModel:
    """The model of a smaller order, whose counts a larger one holds."""
    return ByteModel(order, model.counts[: order + 1], model.contexts[: order + 1])


def bits_per_byte(model: ByteModel, texts: list[bytes]) -> float:
    """Mean number of bits that the model needs for a byte of the texts.

    The probability interpolates all orders by Witten and Bell's rule: after a context seen n times
    and followed by t different bytes, p(b) = (count(b) + t p_shorter(b)) / (n + t), down to 1/256.

    Source: Witten and Bell, 1991, doi 10.1109/18.87000, method C, in its interpolated form.
    """
    bits = sum(-np.log2(probabilities(model, text)).sum() for text in texts if text)
    total = sum(len(text) for text in texts)
    if not total:
        raise InputError("there is no text to measure")
    return float(bits) / total


def probabilities(model: ByteModel, text: bytes) -> np.ndarray:
    """Probability of each byte of `text` after the bytes before it: float64 [len(text)]."""
    p = np.full(len(text), 1 / 256)
    for length in range(1, model.order + 2):
        if len(text) < length:
            break
        keys = _strings(text, length)
        count = _lookup(keys, model.counts[length - 1][0], model.counts[length - 1][1])
        context, number, kinds = model.contexts[length - 1]
        n = _lookup(keys >> np.uint64(8), context, number)
        t = _lookup(keys >> np.uint64(8), context, kinds)
        tail = p[length - 1 :]
        # A context never seen leaves the shorter one's probability unchanged.
        seen = n > 0
        tail[seen] = (count[seen] + t[seen] * tail[seen]) / (n[seen] + t[seen])
    return p


def size(model: ByteModel) -> int:
    """Number of distinct strings that the model counts: the control's number of parameters."""
    return sum(len(keys) for keys, _ in model.counts)


def _strings(text: bytes, length: int) -> np.ndarray:
    """All strings of `length` bytes in the text, as big-endian numbers: uint64."""
    if len(text) < length:
        return np.zeros(0, np.uint64)
    data = np.frombuffer(text, np.uint8).astype(np.uint64)
    keys = np.zeros(len(text) - length + 1, np.uint64)
    for i in range(length):
        keys = (keys << np.uint64(8)) | data[i : len(text) - length + 1 + i]
    return keys


def _lookup(keys: np.ndarray, table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """values[key], 0 for keys that the sorted table lacks."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[place] == keys, values[place], 0)
