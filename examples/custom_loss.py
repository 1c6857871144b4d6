"""Train with a loss of your own: cross-entropy with smoothed labels.

python examples/custom_loss.py

A loss is `loss(params, frozen, batch, key) -> (sum, weight, {name: sum})`: the step divides once.
"""

import jax
import numpy as np
import optax

from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig

cfg = byte_model(64, 1, kv_heads=2, q_per_kv=2, head_dim=16, mlp_width=128, max_length=256)


def loss(params, frozen, batch, key):
    out = decoder.apply(params, batch["tokens"][:, :-1], cfg=cfg, key=key)
    logits = decoder.logits(params, out.hidden, cfg=cfg)
    target = jax.nn.one_hot(batch["tokens"][:, 1:], cfg.vocab)
    smoothed = optax.losses.safe_softmax_cross_entropy(logits, optax.smooth_labels(target, 0.1))
    hits = (logits.argmax(-1) == batch["tokens"][:, 1:]).sum()
    return smoothed.sum(), float(smoothed.size), {"hits": hits.astype("float32")}


def batches(step):
    while True:  # counting upwards from a random byte
        start = np.random.default_rng(step).integers(0, 200, (8, 1))
        yield {"tokens": (start + np.arange(33)).astype(np.int32)}
        step += 1


state = train(loss, decoder.spec(cfg), batches, cfg=LoopConfig(steps=60), folder=None,
              optimizer=optax.adam(3e-3))  # fmt: skip
total, weight, sums = loss(state.params, None, next(batches(60)), None)
print(f"loss {total / weight:.2f}, {sums['hits'] / weight:.0%} of the next bytes are right")
