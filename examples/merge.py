"""Fine-tune one model on each of two texts, merge the two, and measure all on both.

python examples/merge.py
"""

import jax

import pangu_jax as pj
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import drawn_batches
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.reasoning.merge import merge
from pangu_jax.reasoning.merge_recipe import Recipe
from pangu_jax.train.language import language_loss
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.optimizer import make_optimizer
from pangu_jax.train.optimizer_config import OptimizerConfig

cfg = byte_model(64, 1, kv_heads=2, q_per_kv=2, head_dim=16, mlp_width=128, max_length=256)
texts = {"fox": "the quick brown fox jumps. " * 80, "pack": "my box with five dozen jugs. " * 80}


def trained(text, params=None):
    source = PackedTokens(tokenize([Document("text", text)], ByteTokenizer()), 32)
    batches = lambda step: drawn_batches(source, batch=8, start_step=step)  # noqa: E731
    start = jax.tree.map(jax.numpy.copy, params)  # the loop donates what it is given
    return train(language_loss(cfg), decoder.spec(cfg), batches, cfg=LoopConfig(steps=40),
                 optimizer=make_optimizer(OptimizerConfig(), 40), folder=None, params=start,
                 label=None).params  # fmt: skip


base = trained("".join(texts.values()))
models = {name: trained(text, base) for name, text in texts.items()}
models["merged"] = merge(list(models.values()), Recipe("ties"), base=base, spec=decoder.spec(cfg))
for name, params in models.items():
    model = pj.Model("decoder", params, cfg, ByteTokenizer())
    bits = [pj.evaluate(model, [text], length=32)["bits_per_byte"] for text in texts.values()]
    print(f"{name:8} bits per byte:", *(f"{on} {b:.2f}" for on, b in zip(texts, bits, strict=True)))
