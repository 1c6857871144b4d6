"""Each text once, in files that are found again."""

import numpy as np
import pytest

from pangu_jax.core.cells import open_results
from pangu_jax.core.errors import InputError
from pangu_jax.eval import embedding_cache
from pangu_jax.eval.embedding import Embeddings
from pangu_jax.eval.embedding_cache import embed_distinct

TEXTS = ["bb", "a", "ccc", "a", "", "dd", "ccc", "eeee"]


def embed(texts):
    """Length and first letter."""
    found = [[len(text), ord(text[0]) if text else 0] for text in texts]
    return Embeddings(np.array(found, np.float32), sum(len(t) > 2 for t in texts), 2)


def test_each_text_is_embedded_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "CHUNK", 4)
    results, seen = open_results(tmp_path, {"a": 1}), []
    words = (tmp_path, results, "set", TEXTS, embed)
    places, vectors = embed_distinct(*words, progress=lambda *n: seen.append(n))
    assert seen == [(0, 6), (4, 6), (6, 6)]
    assert list(places) == ["", "a", "bb", "dd", "ccc", "eeee"]
    np.testing.assert_array_equal(vectors[[places[text] for text in TEXTS]], embed(TEXTS).vectors)
    assert results["vectors/set/0001"]["cut"] == 2 and results["vectors/set/0000"]["texts"] == 4
    again = embed_distinct(*words[:-1], lambda texts: pytest.fail("is there"))
    np.testing.assert_array_equal(again[1], vectors)
    (tmp_path / "vectors/set/0001.npy").write_bytes(b"other")
    with pytest.raises(InputError, match=r"0001\.npy is not the file that the run wrote"):
        embed_distinct(*words)
    (tmp_path / "vectors/set/0000.npy").unlink()
    with pytest.raises(InputError, match=r"cannot read .*0000\.npy: No such file"):
        embed_distinct(*words)
    with pytest.raises(InputError, match="no text to embed"):
        embed_distinct(tmp_path, results, "none", [], embed)
