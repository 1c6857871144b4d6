"""Attention to another sequence beside torch's, gradients too: `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.nn.attention import AttentionConfig, Source
from pangu_jax.nn.block import LayerConfig, attention_half
from pangu_jax.nn.mlp import MlpConfig

pytestmark = pytest.mark.parity
WIDTH, HEADS = 12, 3


def ours(module, norm):
    """Torch's packed projections and LayerNorm as the tree of an attention branch."""

    def split(x):
        return [np.asarray(part) for part in x.detach().numpy().reshape(3, WIDTH, *x.shape[1:])]

    names, tree = ("query", "key", "value"), {}
    kernels, biases = split(module.in_proj_weight), split(module.in_proj_bias)
    for name, kernel, bias in zip(names, kernels, biases, strict=True):
        heads = (HEADS, 1, -1) if name == "query" else (HEADS, -1)
        tree[name] = {"kernel": kernel.T.reshape(WIDTH, *heads), "bias": bias.reshape(heads)}
    out = module.out_proj
    tree["out"] = {
        "kernel": out.weight.detach().numpy().T.reshape(HEADS, 1, -1, WIDTH),
        "bias": out.bias.detach().numpy(),
    }
    scale = {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}
    return jax.tree.map(jnp.asarray, {"attention": tree, "attention_norm": scale})


@pytest.mark.parametrize("place", ["pre", "post"])
def test_attention_to_another_sequence_is_torchs_gradients_too(place):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-5)
    for leaf in (module.in_proj_bias, module.out_proj.bias, norm.weight, norm.bias):
        torch.nn.init.normal_(leaf, std=0.5)
    given = [torch.randn(2, length, WIDTH, requires_grad=True) for length in (4, 7, 7)]
    x, key, value = given
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[1, 5:] = True
    read = norm(x) if place == "pre" else x
    branch, _ = module(read, key, value, key_padding_mask=hidden, need_weights=False)
    want = x + branch if place == "pre" else norm(x + branch)
    (want**2).sum().backward()

    heads = AttentionConfig(
        HEADS, 1, WIDTH // HEADS, True, True, True, True, rotary=False, causal=False
    )
    cfg = LayerConfig(heads, mlp=MlpConfig(1), norm="layer", norm_place=place)
    mask = jnp.broadcast_to(~jnp.asarray(hidden.numpy())[:, None], (2, 4, 7))

    def run(params, x, key, value):
        source = Source(key, value)
        return attention_half(params, x, None, mask, cfg=cfg, eps=1e-5, source=source)[0]

    arrays = [jnp.asarray(a.detach().numpy()) for a in given]
    params = ours(module, norm)
    np.testing.assert_allclose(run(params, *arrays), want.detach().numpy(), atol=1e-5)
    loss = lambda *a: (run(*a) ** 2).sum()  # noqa: E731
    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(params, *arrays)
    for leaf in (module.in_proj_weight, module.in_proj_bias, *module.out_proj.parameters()):
        leaf.data = leaf.grad
    norm.weight.data, norm.bias.data = norm.weight.grad, norm.bias.grad
    slopes = (ours(module, norm), *(a.grad.numpy() for a in given))
    found, slopes = map(jax.tree.leaves, (found, slopes))
    most = max(np.abs(b).max() for b in slopes)  # the key's bias has none, but for rounding
    for a, b in zip(found, slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * most)
