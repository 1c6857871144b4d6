"""A pruned model is compiled at its smaller shapes, so it saves what is counted.

Here the compiler's own count is read, and one prefill is timed when that is asked for; times of
more shapes, on GPUs too, are measured by tools/bench/prune_latency.py.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from pangu_jax.core.spec import abstract, count, init
from pangu_jax.models import decoder
from pangu_jax.models.presets import uniform
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.pruning import axes, plan
from pangu_jax.pruning.prune import prune

LENGTH = 64


def compiled_flops(params, cfg):
    def forward(params, tokens):
        return decoder.logits(params, decoder.apply(params, tokens, cfg=cfg).hidden, cfg=cfg)

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


@pytest.mark.slow
def test_a_prefill_of_126_million_parameters_is_faster_with_half_the_channels(as_users):
    cfg = uniform(8192, 768, 12, AttentionConfig(12, 1, 64), mlp=MlpConfig(3072), max_length=256)
    params = jax.jit(lambda key: init(decoder.spec(cfg), key=key))(jax.random.key(0))
    base = plan.identity(cfg)
    half = tuple(dataclasses.replace(x, channels=tuple(range(0, 3072, 2))) for x in base.layers)
    small, small_cfg = prune(params, dataclasses.replace(base, layers=half), cfg=cfg)
    tokens = jnp.zeros((1, 256), jnp.int32)

    def ready(params, cfg):
        def prefill(params, tokens):
            return decoder.logits(
                params, decoder.apply(params, tokens, cfg=cfg).hidden[:, -1:], cfg=cfg
            )

        began = time.perf_counter()
        run = jax.jit(prefill, compiler_options=as_users).lower(params, tokens).compile()
        down = params["runs"][0]["mlp"]["down"]["kernel"].shape
        took = time.perf_counter() - began
        print(f"{count(params):,} parameters, down {down}, compiled in {took:.1f} s")
        return lambda: run(params, tokens).block_until_ready()

    models = {"dense": ready(params, cfg), "half": ready(small, small_cfg)}
    times = {name: [] for name in models}
    for _ in range(8):  # in turn, so that a busy machine hits both
        for name, run in models.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    faster = min(times["dense"]) / min(times["half"])
    ratio = axes.flops(cfg, 256) / axes.flops(small_cfg, 256)
    print(f"{faster:.2f} times as fast with {ratio:.2f} times fewer FLOPs")
    assert faster > 1 + (ratio - 1) / 2
