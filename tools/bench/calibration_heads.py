"""Should calibration windows begin with a token of the model's own? Prunes with and without.

    python tools/bench/calibration_heads.py MODEL calibration.txt questions.jsonl --out heads.jsonl

MODEL is a chat model of the ChatML kind (such as SmolLM2) in the Hugging Face layout. It is pruned
to 80 % of its parameters on 32 windows of 128 tokens of the text, headed by nothing, by
<|im_start|> or by the boundary token; three choices of windows each, the first of which are the
text's first. Measured are 400 windows after these, with each head, and the first 100 questions and
answers as chats (keys "question" and "answer"). A line of JSON each; the first is the dense model.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from pangu_jax.checkpoint import hf
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import Document, documents
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval.perplexity import measure, measure_windows
from pangu_jax.pruning.allocate import Limits, parse
from pangu_jax.pruning.compress import compress

LENGTH, CALIBRATION, MEASURED, CHATS = 128, 32, 400, 100
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def windows(ids: np.ndarray, head: list[int]) -> np.ndarray:
    """The text in windows of one length, each with its head."""
    size = LENGTH - len(head)
    body = ids[: len(ids) // size * size].reshape(-1, size)
    return np.concatenate([np.tile(np.array(head, np.int32), (len(body), 1)), body], 1)


def chats(path: str) -> list[Document]:
    """Questions and answers in ChatML."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines()[:CHATS]:
        turn = json.loads(line)
        text = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
            f"<|im_start|>user\n{turn['question']}<|im_end|>\n"
            f"<|im_start|>assistant\n{turn['answer']}<|im_end|>\n"
        )
        found.append(Document(str(len(found)), text))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("questions")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    params, cfg = hf.load(options.model)
    tokenizer = load_tokenizer(options.model)
    ids = np.asarray(tokenize(documents(options.text), tokenizer).ids[1:], np.int32)
    spoken = tokenize(chats(options.questions), tokenizer, as_prompts=True)
    heads = {
        "none": [],
        "im_start": tokenizer.encode("<|im_start|>"),
        "boundary": [tokenizer.boundary],
    }

    def report(params, cfg, **facts) -> None:
        for name, head in heads.items():
            rows = windows(ids, head)[CALIBRATION + 40 :][:MEASURED]
            facts[name] = measure_windows(params, rows, cfg=cfg, batch=16).perplexity
        facts["chat"] = measure(params, spoken, cfg=cfg, length=512).perplexity
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
        print(facts, flush=True)

    report(params, cfg, calibration="dense")
    for name, head in heads.items():
        rows = windows(ids, head)
        late = rows[-2000:]
        for draw in range(3):
            chosen = np.random.default_rng(draw - 1).permutation(len(late)) if draw else None
            calibration = rows[:CALIBRATION] if chosen is None else late[chosen[:CALIBRATION]]
            found = compress(
                params, calibration, cfg=cfg, target=parse("params=0.8"),
                limits=Limits(heads_divide=True, length=LENGTH),
            )  # fmt: skip
            report(found.params, found.cfg, calibration=name, draw=draw)


if __name__ == "__main__":
    main()
