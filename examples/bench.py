"""Ask a model the questions of a file, judge its answers, and count the right ones.

python examples/bench.py
"""

import json
from pathlib import Path

import numpy as np

import pangu_jax as pj
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.eval.pass_at_k import wilson
from pangu_jax.models.presets import byte_model
from pangu_jax.reasoning.bench import judge
from pangu_jax.reasoning.bench_prompts import Prompter
from pangu_jax.reasoning.bench_tasks import read_items
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig

path, file = "runs/sums", "runs/sums.jsonl"
rows = [{"question": f"{a}+2", "answer": str(a + 2), "kind": "number"} for a in range(8)]
texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows[:5]]
source = PackedTokens(tokenize([Document(text, text) for text in texts], ByteTokenizer()), 24)
cfg = byte_model(64, 1, kv_heads=2, q_per_kv=2, head_dim=16, mlp_width=128, max_length=256)
batches = lambda step: drawn_batches(source, batch=8, start_step=step)  # noqa: E731
train_language(cfg, batches, path, loop=LoopConfig(steps=100))  # on five of the eight sums
Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))

# From here on with any model, and any file of questions.
model, items = pj.load(path), read_items(file)
prompter, right = Prompter(model.tokenizer, "plain"), []
texts = pj.generate(model, [prompter.text(item) for item in items], max_new_tokens=2)
for item, text in zip(items, texts, strict=True):
    right.append(judge(item, prompter.found(item, text)).right)
    print(f"{item.question} = {text.strip()!r}: {'right' if right[-1] else 'wrong'}")
share = wilson(np.array(right, float))
print(f"{share.value:.0%} right, 95 % interval {share.low:.0%} to {share.high:.0%}")
