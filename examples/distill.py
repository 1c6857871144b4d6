"""Let a small dense model learn from another's predictions alone.

python examples/distill.py [TEACHER]     # runs/example, of examples/train.py

`pangu-jax distill` recovers pruned models in this way.
"""

import sys

import optax

import pangu_jax as pj
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document
from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.train.distill import distill_loss
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig

teacher = pj.load(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
cfg = byte_model(48, 1, kv_heads=2, q_per_kv=2, head_dim=12, mlp_width=96, max_length=256)
text = "the quick brown fox jumps over the lazy dog. " * 50
source = PackedTokens(tokenize([Document("fox", text)], teacher.tokenizer), 32)

state = train(
    distill_loss(teacher.cfg, cfg, lm_weight=0.0),
    decoder.spec(cfg),
    lambda step: drawn_batches(source, batch=8, start_step=step),
    cfg=LoopConfig(steps=80),
    optimizer=optax.adam(5e-3),
    folder=None,
    frozen=teacher.params,
)
student = pj.Model("decoder", state.params, cfg, teacher.tokenizer)
for name, model in (("teacher", teacher), ("student", student)):
    print(f"{name}: {pj.evaluate(model, [text], length=32)['bits_per_byte']:.3f} bits per byte")
