"""Use the grouped experts inside a Flax model, Linen or NNX.

python examples/flax_block.py
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from pangu_jax.interop.flax import Adapted, LinenAdapter, NnxAdapter
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec

cfg = MoEConfig(experts=8, groups=4, top_k=1, width=16, shared_width=32, router_scale=True)
experts = Adapted(lambda: moe_spec(64, cfg), partial(moe, cfg=cfg))


class Net(nn.Module):
    """A Linen model around it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(64)(x)
        y, stats = LinenAdapter(experts)(x)
        return nn.Dense(1)(x + y), stats


x = jax.random.normal(jax.random.key(0), (2, 8, 3))
variables = nn.meta.unbox(jax.jit(Net().init)(jax.random.key(1), x))
loss = lambda v: (Net().apply(v, x)[0] ** 2).mean()  # noqa: E731
value, grads = jax.jit(jax.value_and_grad(loss))(variables)
router = grads["params"]["LinenAdapter_0"]["router"]["kernel"]
print(f"Linen: loss {value:.3f}, greatest gradient of the router {jnp.abs(router).max():.2g}")

layer = nnx.jit(lambda: NnxAdapter(experts, rngs=nnx.Rngs(0)))()
x = jax.random.normal(jax.random.key(2), (2, 8, 64))
y, stats = nnx.jit(lambda layer, x: layer(x))(layer, x)
print("NNX:", y.shape, "tokens of each group's experts:", stats.load.astype(int).tolist())
