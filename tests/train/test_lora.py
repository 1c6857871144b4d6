"""Low-rank adapters: what they add to which kernels, what is trained, saved and merged."""

import itertools
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check, init, is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.train import lora
from pangu_jax.train.loop import train
from pangu_jax.train.loop_config import LoopConfig
from pangu_jax.train.lora import LoraConfig
from pangu_jax.train.stop_signal import Stopped

HEADS = AttentionConfig(4, 2, 4)
ROUTED = LayerConfig(HEADS, moe=MoEConfig(4, 2, 1, 4))
SPEC = decoder.spec(
    decoder.DecoderConfig(12, 8, (LayerConfig(HEADS, mlp=MlpConfig(8)), ROUTED, ROUTED))
)
EVERY = LoraConfig(".*/kernel", rank=2, alpha=3.0)
RNG = np.random.default_rng(0)


def filled(spec):
    return jax.tree.map(
        lambda s: RNG.normal(size=s.shape).astype(np.float32), spec, is_leaf=is_spec
    )


def test_every_kernel_gets_its_own_product_of_two_factors():
    spec = lora.attach(SPEC, EVERY)
    params = filled(spec)
    merged = jax.device_get(jax.jit(lambda p: lora.merge(p, EVERY))(params))
    check(SPEC, merged)
    given, seen = flatten(params), 0
    axes = {name: leaf.axes for name, leaf in flatten(spec, is_leaf=is_spec).items()}
    for name, kernel in flatten(merged).items():
        if not name.endswith("/kernel"):
            np.testing.assert_array_equal(kernel, given[name])
            continue
        into, out = (given[name.replace("kernel", f"lora_{side}")] for side in ("into", "out"))
        many = [axis for axis in axes[name] if axis in ("layers", "expert", "group")]
        if name.endswith("router/kernel"):  # there the experts are what is chosen among
            many = many[:1]
        lead = kernel.shape[: len(many)]
        assert into.shape[:-2] == out.shape[:-2] == lead and into.shape[-1] == out.shape[-2] == 2
        for place in np.ndindex(*lead):
            want = given[name][place].reshape(into.shape[-2], -1) + 1.5 * into[place] @ out[place]
            np.testing.assert_allclose(
                kernel[place].reshape(want.shape), want, rtol=1e-4, atol=1e-5
            )
            seen += 1
        for side in (into.shape[-2], out.shape[-1]):
            assert side < np.prod(kernel.shape[len(many) :])
    assert seen > 20


def test_a_factor_is_split_over_devices_as_its_side_of_the_kernel():
    spec = flatten(lora.attach(SPEC, EVERY), is_leaf=is_spec)
    assert spec["runs/0/mlp/up/lora_into"].axes == ("layers", "embed", None)
    assert spec["runs/0/mlp/up/lora_out"].axes == ("layers", None, "mlp")
    assert spec["runs/0/attention/out/lora_into"].axes == ("layers", None, None)
    assert spec["runs/0/attention/out/lora_into"].shape == (1, 32, 2)
    assert spec["runs/0/attention/out/lora_out"].axes == ("layers", None, "embed")
    assert spec["runs/0/attention/query/lora_into"].shape == (1, 8, 2)


def test_what_is_no_kernel_is_not_adapted():
    for pattern, words in (
        (".*/scale", "only kernels are adapted"),
        ("kernel", "no parameter's whole path"),
    ):
        with pytest.raises(InputError, match=words):
            lora.attach(SPEC, LoraConfig(pattern))
    with pytest.raises(InputError, match="rank must be at least 1"):
        LoraConfig(rank=0)


DENSE = decoder.spec(decoder.DecoderConfig(12, 8, (LayerConfig(HEADS, mlp=MlpConfig(8)),)))


def loss(params, frozen, batch, key):
    """Pulls every kernel at the batch's number."""
    del frozen, key
    parts = [((x - batch["at"][0]) ** 2).sum() for x in jax.tree.leaves(params)]
    return sum(parts), jnp.float32(1), {}


CFG = LoraConfig(".*/(query|down)/kernel", rank=2)
ADAPTED, ADAM = lora.adapted(loss, CFG), optax.adam(1e-2)  # the same ones are compiled once


def tuned(folder, at=0):
    spec = lora.attach(DENSE, CFG)
    base = jax.tree.map(lambda s: np.ones(s.shape, np.float32), DENSE, is_leaf=is_spec)
    params = jax.jit(lambda key: lora.attach_params(base, spec, key=key))(jax.random.key(1))

    def stream(step):
        for number in itertools.count(step + 1):
            if number == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield {"at": np.float32([number])}

    return train(
        ADAPTED,
        spec,
        stream,
        cfg=LoopConfig(4),
        optimizer=ADAM,
        folder=folder,
        params=params,
        trainable=lora.TRAINED,
    )


def test_factors_alone_are_trained_saved_and_gone_on_with(tmp_path):
    whole = tuned(None)
    spec = lora.attach(DENSE, CFG)
    fresh = flatten(jax.jit(lambda k: init(spec, key=k))(jax.random.key(0)))
    for name, factor in fresh.items():  # at first nothing is added, and something can be learned
        assert "lora" not in name or factor.any() == name.endswith("into")
    with pytest.raises(Stopped):
        tuned(tmp_path, at=2)
    state = tuned(tmp_path)
    chex.assert_trees_all_equal(state, whole)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    factors = {n: x for n, x in flatten(state.params).items() if "lora" in n}
    assert moments == 1 + 2 * sum(x.size for x in factors.values())
    assert len(factors) == 4 and all((np.asarray(x) != 0).any() for x in factors.values())
    rest = {n: x for n, x in flatten(state.params).items() if n not in factors}
    assert all((np.asarray(x) == 1).all() for x in rest.values())
    merged = flatten(jax.jit(lambda p: lora.merge(p, CFG))(state.params))
    changed = {name for name, x in merged.items() if (np.asarray(x) != 1).any()}
    assert {name.split("/")[-2] for name in changed} == {"query", "down"}
