"""Train a small model with grouped experts on a text, and let it write.

python examples/train.py [FOLDER]     # leaves the model in runs/example, for the other examples
"""

import sys

import pangu_jax as pj
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.models.presets import BYTE_VOCAB, uniform
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.train.language import train_language
from pangu_jax.train.loop_config import LoopConfig

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
text = "the quick brown fox jumps over the lazy dog. " * 50

# Eight experts in four groups: each token uses the best expert of every group.
moe = MoEConfig(experts=8, groups=4, top_k=1, width=16, shared_width=32, router_scale=True)
attention = AttentionConfig(kv_heads=2, q_per_kv=2, head_dim=16)
cfg = uniform(BYTE_VOCAB, 64, 1, attention, moe=moe, max_length=256)

# `pangu_jax.data.text.documents` reads files and folders.
tokens = tokenize([Document("fox", text)], ByteTokenizer())
source = PackedTokens(tokens, 32)
train_language(
    cfg,
    lambda step: drawn_batches(source, batch=8, start_step=step),
    folder,
    loop=LoopConfig(steps=60),
)
model = pj.load(folder)
print(pj.generate(model, ["the quick", "over the"], max_new_tokens=24))
