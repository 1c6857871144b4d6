"""T15 in part: a pruned model is compiled at its smaller shapes, so it saves what is counted.

Times are measured by tools/bench/prune_latency.py; here the compiler's own count is read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pangu_jax.core.spec import abstract
from pangu_jax.models import decoder
from pangu_jax.models.presets import uniform
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.pruning import axes, plan
from pangu_jax.pruning.prune import prune

LENGTH = 64


def compiled_flops(params, cfg):
    def forward(params, tokens):
        return decoder.logits(params, decoder.apply(params, tokens, cfg=cfg).hidden)

    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    cost = jax.jit(forward).lower(params, tokens).compile().cost_analysis()
    return cost["flops"] / LENGTH


@pytest.fixture(scope="module")
def dense():
    # One layer, as the compiler counts the body of a loop over layers once.
    cfg = uniform(512, 256, 1, AttentionConfig(8, 2, 32), mlp=MlpConfig(1024), max_length=LENGTH)
    return cfg, abstract(decoder.spec(cfg))


@pytest.mark.parametrize(("groups", "channels"), [(8, 512), (4, 1024), (4, 512)])
def test_the_compiled_prefill_saves_what_is_counted(dense, groups, channels):
    cfg, params = dense
    base = plan.identity(cfg)
    layer = base.layers[0]
    part = plan.LayerPlan(0, layer.groups[:groups], layer.heads[:groups], tuple(range(channels)))
    made = dataclasses.replace(base, layers=(part,))
    box = []

    def cut(params):
        small, small_cfg = prune(params, made, cfg=cfg)
        box.append(small_cfg)
        return small

    small = jax.eval_shape(cut, params)
    saved = compiled_flops(params, cfg) - compiled_flops(small, box[0])
    # A causal product counts half in `flops`; compiled, the whole square is computed.
    counted = axes.flops(cfg, 2 * LENGTH) - axes.flops(box[0], 2 * LENGTH)
    assert saved == pytest.approx(counted, rel=0.05)
