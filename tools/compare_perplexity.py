"""Measures a checkpoint's perplexity here and in transformers, by the protocol of `pangu-jax eval`.

    python tools/compare_perplexity.py MODEL text.txt [--bytes 60000] [--length 512]

MODEL is a folder in the Hugging Face layout with a tokenizer.json, text.txt one document in UTF-8.
Prints a line of JSON: both perplexities, their ratio, how many tokens, and the seconds each took.
Needs torch and transformers (the "parity" extra).
"""

import argparse
import json
import math
import time
from pathlib import Path

from pangu_jax.checkpoint import hf
from pangu_jax.cli.progress import progress
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval.perplexity import measure


def transformers_nats(model, ids: list[int], length: int, say=lambda done, total: None) -> float:
    """Nats of all ids but the first; windows end where the one before ended, plus `length`."""
    import torch

    nats = 0.0
    for start in range(0, len(ids) - 1, length):
        end = min(start + length, len(ids) - 1)
        first = max(0, end - length)  # the last window is filled up with what was before
        with torch.no_grad():
            scores = model(torch.tensor([ids[first:end]])).logits[0, start - first :].double()
        labels = torch.tensor(ids[start + 1 : end + 1])
        nats -= float(torch.log_softmax(scores, -1).gather(-1, labels[:, None]).sum())
        say(end, len(ids) - 1)
    return nats


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--bytes", type=int, help="measure only so many of the text's first bytes")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    options = parser.parse_args()
    text = Path(options.text).read_bytes()[: options.bytes].decode("utf-8")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    params, cfg = hf.load(options.model)
    tokens = tokenize(
        [Document(options.text, text)], load_tokenizer(options.model), as_prompts=True
    )
    with progress() as show:
        began = time.monotonic()
        ours = measure(
            params, tokens, cfg=cfg, length=options.length,
            progress=lambda done, total: show("here, windows", done, total),
        )  # fmt: skip
        between = time.monotonic()
        ids = AutoTokenizer.from_pretrained(options.model).encode(text)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32").eval()
        nats = transformers_nats(
            model, ids, options.length,
            lambda done, total: show("transformers, tokens", done, total),
        )  # fmt: skip
        ended = time.monotonic()
    theirs = math.exp(nats / (len(ids) - 1))
    found = {
        "perplexity": ours.perplexity,
        "transformers": theirs,
        "ratio": ours.perplexity / theirs,
        "tokens": ours.tokens,
        "transformers_tokens": len(ids) - 1,
        "seconds": round(between - began, 1),
        "transformers_seconds": round(ended - between, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
