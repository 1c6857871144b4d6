"""Cut half of the feed-forward channels of a model, by SlimLLM's scores.

python examples/prune.py [OUT]     # trains a small dense model first; pj.load(PATH) takes yours
"""

import sys
import tempfile
from pathlib import Path

import pangu_jax as pj
from pangu_jax.core.spec import count
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig

text = "the quick brown fox jumps over the lazy dog. " * 50
cfg = byte_model(64, 1, kv_heads=2, q_per_kv=2, head_dim=16, mlp_width=128, max_length=256)
source = PackedTokens(tokenize([Document("fox", text)], ByteTokenizer()), 32)
batches = lambda step: drawn_batches(source, batch=8, start_step=step)  # noqa: E731
train_language(cfg, batches, "runs/dense", loop=LoopConfig(steps=40))

Path("runs/text.txt").write_text(text)
model = pj.load("runs/dense")
out = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(dir="runs")  # a new folder
sizes = {"windows": 8, "length": 32, "eval_windows": 0}
small = pj.prune(model, out, target="ffn=0.5", calib="runs/text.txt", **sizes)
for name, found in (("dense", model), ("pruned", small)):
    score = pj.evaluate(found, [text], length=32)
    parameters = count(decoder.spec(found.cfg))
    print(f"{name}: {parameters:,} parameters, {score['bits_per_byte']:.3f} bits per byte")
print(f"{out} holds the checkpoint, plan.json and report.md")
