"""Lexical scores of documents: two forms of BM25, and floors.

All are functions of a query and of documents, and return float64, one score per document.

BM25 is rank_bm25's (k1 1.5, b 0.75). `candidate_bm25` indexes just the documents that are compared,
as MultiConIR's released code does. With two of them the inverse document frequency of every word
that distinguishes them is log(1.5 / 1.5) = 0, and words of both get a negative one, so that scores
are ties or follow the lengths. `Collection` takes the frequencies from a collection instead.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra

Scorer = Callable[[str, Sequence[str]], np.ndarray]


def split_words(text: str) -> list[str]:
    """Splits lower-cased text at white space; punctuation stays on its word, as in the release."""
    return text.lower().split()


def words(text: str) -> list[str]:
    r"""Lower case, runs of letters, digits and underscores."""
    return re.findall(r"\w+", text.lower())


def candidate_bm25(query: str, documents: Sequence[str]) -> np.ndarray:
    """Okapi BM25 over an index of these documents alone: float64 [documents].

    Raises:
      InputError: rank_bm25 is not installed, or no document has a word.
    """
    return _index(documents, split_words).get_scores(split_words(query))


class CollectionBM25:
    """BM25 with the frequencies of a collection; scored documents need not be in it.

    A word's weight is log(1 + (n - df + 0.5) / (df + 0.5)) for n documents, which is never negative
    and is Lucene's; a word that the collection lacks has df 0.
    """

    def __init__(self, documents: Iterable[str]):
        """Counts words in the documents of the collection, which are read once."""
        self._size, self._total = 0, 0
        self._frequency: Counter[str] = Counter()
        for document in documents:
            found = words(document)
            self._size += 1
            self._total += len(found)
            self._frequency.update(set(found))
        if not self._total:
            raise InputError("the collection has no words")

    def scores(self, query: str, documents: Sequence[str]) -> np.ndarray:
        """The documents' scores, float64 [documents].

        Raises:
          InputError: rank_bm25 is not installed.
        """
        if not any(words(document) for document in documents):
            return np.zeros(len(documents))
        index = _index(documents, words)
        index.avgdl = self._total / self._size
        index.idf = {word: self.idf(word) for word in index.idf}
        return index.get_scores(words(query))

    def idf(self, word: str) -> float:
        """The inverse document frequency of a word, a natural logarithm."""
        found = self._frequency[word]
        return math.log(1 + (self._size - found + 0.5) / (found + 0.5))


def overlap(query: str, documents: Sequence[str]) -> np.ndarray:
    """Share of the query's distinct words that each document has: float64 [documents]."""
    wanted = set(words(query))
    return np.array([len(wanted & set(words(d))) / max(len(wanted), 1) for d in documents])


def length(query: str, documents: Sequence[str]) -> np.ndarray:
    """Number of words of each document, whatever the query: float64 [documents]."""
    return np.array([len(words(document)) for document in documents], np.float64)


def constant(query: str, documents: Sequence[str]) -> np.ndarray:
    """The same score, 0, for every document: float64 [documents]."""
    return np.zeros(len(documents))


def _index(documents: Sequence[str], cut: Callable[[str], list[str]]):
    check_extra("retrieval", "rank_bm25", by="BM25")
    from rank_bm25 import BM25Okapi

    found = [cut(document) for document in documents]
    if not any(found):
        raise InputError("BM25 needs a document that has a word")
    return BM25Okapi(found)
