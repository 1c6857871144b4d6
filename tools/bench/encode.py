"""Times encoding: an encoder in JAX beside torch, with the same weights, texts and precision.

    python tools/bench/encode.py minilm --data MultiConIR --texts 2000       two CPU cores
    python tools/bench/encode.py minilm --data MultiConIR --dtype bfloat16   a GPU

Both take texts sorted by length, in batches of one size, and are timed from text to vectors, words
cut included, in turn, after a round that compiles; the least of the rounds counts. The cosines of
their vectors are compared. `torch` is transformers' BertModel, padded to the longest of a batch
and pooled as sentence-transformers does; `sentence-transformers` is its `encode`, where it is
installed, and otherwise is left out with a line that says so. The best of the others is what the
ratio is of.

Prints a line a form: texts/s, tokens/s, the ratio, the least cosine; on a CPU also the ratio of
what the process's cores were busy for, which tells more where others keep the cores busy, too.
"""

import argparse
import importlib
import json
import os
import time

import jax
import numpy as np

from pangu_jax.data.encoder_inputs import encode_for_encoder
from pangu_jax.data.multiconir import find_parts, read_rows
from pangu_jax.data.multiconir_fact import texts as texts_of
from pangu_jax.eval.embedding import cut_length
from pangu_jax.eval.text_encoder import open_text_encoder
from pangu_jax.nn.how import How


def ours(folder, batch, dtype):
    """Texts to vectors by `encode` of the opened model."""
    model = open_text_encoder(folder, how=How(dtype=dtype))
    return lambda texts: model.encode(texts, batch_size=batch)


def by_torch(folder, batch, dtype, length):
    """Texts to vectors by transformers: the mean over real tokens, at length 1."""
    import torch
    import transformers

    place = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    model = model.to(place, getattr(torch, dtype))

    def encode(texts):
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for first in range(0, len(order), batch):
                rows = order[first : first + batch]
                inputs = tokenizer(
                    [texts[i] for i in rows],
                    padding=True,
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                ).to(place)
                hidden = model(**inputs).last_hidden_state.float()
                real = inputs["attention_mask"][..., None].float()
                mean = (hidden * real).sum(1) / real.sum(1).clamp(min=1e-9)
                found[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return found

    return encode


def by_sentence_transformers(folder, batch, dtype, length):
    """Texts to vectors by `SentenceTransformer.encode`; None where it is not installed."""
    try:
        sentence_transformers = importlib.import_module("sentence_transformers")
    except ImportError:
        return None
    import torch

    model = sentence_transformers.SentenceTransformer(
        str(folder), model_kwargs={"torch_dtype": getattr(torch, dtype)}
    )
    model.max_seq_length = length
    return lambda texts: np.asarray(
        model.encode(texts, batch_size=batch, show_progress_bar=False), np.float32
    )


def least(forms, texts, rounds):
    """Seconds, and those of the cores, of the best round of each, taken in turn; last vectors."""
    seconds, busy, vectors = {}, {}, {}
    for number in range(rounds + 1):
        for name, encode in forms.items():
            began, before = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            took, cores = time.perf_counter() - began, time.process_time() - before
            if number:  # the first compiles
                seconds[name] = min(took, seconds.get(name, np.inf))
                busy[name] = min(cores, busy.get(name, np.inf))
    return seconds, busy, vectors


def cosine(first, second):
    """The least cosine of rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder of sentence-transformers that holds a BertModel")
    parser.add_argument("--data", required=True, help="MultiConIR's folder, for texts")
    parser.add_argument("--texts", type=int, help="how many, drawn from all; all if left out")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    model = open_text_encoder(given.model)
    length = cut_length(model.cfg)
    found = sorted(texts_of(row for part in find_parts(given.data) for row in read_rows(part)))
    if given.texts is not None:
        draw = np.random.default_rng(0)
        found = [found[i] for i in draw.permutation(len(found))[: given.texts].tolist()]
    tokens = sum(len(item.ids) for item in encode_for_encoder(model.tokenizer, found, length))
    forms = {
        "jax": ours(given.model, given.batch, given.dtype),
        "torch": by_torch(given.model, given.batch, given.dtype, length),
    }
    other = by_sentence_transformers(given.model, given.batch, given.dtype, length)
    if other is None:
        print("sentence-transformers is not installed, so it is left out")
    else:
        forms["sentence-transformers"] = other
    seconds, busy, vectors = least(forms, found, given.rounds)
    best, idlest = (min(x for name, x in took.items() if name != "jax") for took in (seconds, busy))
    on_cpu = jax.default_backend() == "cpu"
    where = {"device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0))}
    for name, took in seconds.items():
        line = {
            "form": name,
            "texts/s": round(len(found) / took, 1),
            "tokens/s": round(tokens / took),
            "times the best other": round(best / took, 3),
            "least cosine to jax": round(cosine(vectors["jax"], vectors[name]), 7),
        }
        if on_cpu:
            line["the same of the cores' time"] = round(idlest / busy[name], 3)
        print(json.dumps({**line, **where, "dtype": given.dtype, "batch": given.batch}))


if __name__ == "__main__":
    main()
