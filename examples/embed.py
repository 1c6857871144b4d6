"""Make vectors of texts with any model, and search them.

python examples/embed.py [PATH] [POOLING]     # runs/example, of examples/train.py, and mean

Folders of sentence-transformers say how states are pooled; a decoder needs to be told.
"""

import sys

from pangu_jax.eval.text_encoder import open_text_encoder

path = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
pooling = sys.argv[2] if len(sys.argv) > 2 else "mean"
encoder = open_text_encoder(path, pooling=pooling)

passages = ["the lazy dog", "a quick brown fox", "jumps over"]
queries = ["quick fox", "lazy"]
found, asked = (encoder.encode(texts, normalize_embeddings=True) for texts in (passages, queries))

scores = asked @ found.T  # cosines
for query, row in zip(queries, scores, strict=True):
    best = row.argmax()
    print(f"{query!r}: {passages[best]!r} ({row[best]:.3f})")
