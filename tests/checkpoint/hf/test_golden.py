"""Logits equal PyTorch's on every family, from files; and each thing that could be wrong shows."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pangu_jax.checkpoint import hf
from pangu_jax.core.tree import flatten, map_named
from pangu_jax.models import decoder
from pangu_jax.nn import attention, moe
from pangu_jax.ops.routing import group_topk

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOLERANCE = 1e-5
VISIBLE = 1e-3


@functools.cache
def load(case):
    return hf.load(GOLDEN / case, dtype=jnp.float32)


@functools.cache
def golden(case):
    with np.load(GOLDEN / case / "golden.npz") as arrays:
        return dict(arrays)


def forward(cfg):
    """A new jitted function each time, so that it sees what a test has replaced."""
    return jax.jit(lambda p, t: decoder.logits(p, decoder.apply(p, t, cfg=cfg).hidden, cfg=cfg))


@functools.cache
def clean_forward(cfg):
    return forward(cfg)


def distance(logits, case, name="logits"):
    return float(np.abs(np.asarray(logits) - golden(case)[name]).max())


def with_moe(cfg, **changes):
    layers = [
        dataclasses.replace(layer, moe=dataclasses.replace(layer.moe, **changes))
        for layer in cfg.layers
    ]
    return dataclasses.replace(cfg, layers=tuple(layers))


def test_there_is_a_golden_copy_of_every_family():
    names = {hf.read_config(GOLDEN / case)[1] for case in CASES}
    assert names == {name for name, family in hf.FAMILIES.items() if family.kind == "decoder"}


@pytest.mark.long(but=4)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_pytorch(case):
    params, cfg = load(case)
    assert golden(case)["logits"].std() >= 0.5
    difference = distance(clean_forward(cfg)(params, golden(case)["tokens"]), case)
    print(f"{case}: {difference:.1e}")
    assert difference <= TOLERANCE


@pytest.mark.long(but=1)
@pytest.mark.parametrize("case", [c for c in CASES if (GOLDEN / c / "gradients.npz").exists()])
def test_gradients_are_those_of_pytorch(case, tmp_path):
    params, cfg = load(case)

    def loss(params):
        hidden = decoder.apply(params, golden(case)["tokens"], cfg=cfg).hidden
        return (decoder.logits(params, hidden, cfg=cfg) ** 2).mean()

    # Written as a checkpoint, gradients get the tensors' names and shapes.
    family = hf.read_config(GOLDEN / case)[1]
    hf.save(jax.jit(jax.grad(loss))(params), cfg, tmp_path / "out", family=family)
    found = load_file(tmp_path / "out" / "model.safetensors")
    with np.load(GOLDEN / case / "gradients.npz") as want:
        assert found.keys() == set(want)
        for name, value in found.items():
            assert np.abs(value - want[name]).max() <= 2e-5 * np.abs(want[name]).max(), name


def test_two_experts_of_each_group():
    params, cfg = load("pangu_pro_moe")
    logits = forward(with_moe(cfg, top_k=2))(params, golden("pangu_pro_moe")["tokens"])
    assert distance(logits, "pangu_pro_moe", "logits_two_per_group") <= TOLERANCE
    assert distance(logits, "pangu_pro_moe") > VISIBLE


@pytest.mark.long(but=3)
@pytest.mark.parametrize("case", CASES)
def test_every_leaf_matters(case):
    """Shifting the values of any one leaf by a place changes the logits."""
    params, cfg = load(case)
    tokens = golden(case)["tokens"]
    unseen = []
    for leaf in flatten(params):
        shifted = map_named(lambda n, x, leaf=leaf: jnp.roll(x, 1) if n == leaf else x, params)
        if distance(clean_forward(cfg)(shifted, tokens), case) <= VISIBLE:
            unseen.append(leaf)
    assert not unseen


# What a port of the model could get wrong, as changes of (params, cfg) or of a function.


def swap_gate_and_up(params):
    def swap(tree):
        if not isinstance(tree, dict):
            return tree
        tree = {name: swap(branch) for name, branch in tree.items()}
        return {**tree, "gate": tree["up"], "up": tree["gate"]} if "up" in tree else tree

    return {**params, "runs": [swap(run) for run in params["runs"]]}


def interleave_groups(params):
    """Expert i in group i mod G, as if the stored order ran over the groups first."""

    def renumber(name, x):
        if "/moe/router/" in name:
            lead, (groups, size) = x.shape[:-2], x.shape[-2:]
            return x.reshape(*lead, size, groups).swapaxes(-1, -2)
        if "/moe/experts/" in name:
            layers, groups, size, *rest = x.shape
            return x.reshape(layers, size, groups, *rest).swapaxes(1, 2)
        return x

    return map_named(renumber, params)


def without(pattern, params):
    return map_named(lambda name, x: jnp.zeros_like(x) if name.endswith(pattern) else x, params)


def router(x, kernel, scale, *, k, renormalize=False, softmax_axes=(-2, -1), scale_first=False):
    """The router again, with the places where it is easily got wrong."""
    probs = jax.nn.softmax(jnp.einsum("td,dge->tge", x, kernel), axis=softmax_axes)
    scores = probs * scale if scale_first else probs
    _, ids = group_topk(scores, k)
    weights = jnp.take_along_axis(probs * scale, ids, -1)
    if renormalize:
        weights = weights / weights.sum((-2, -1), keepdims=True)
    return weights, ids, probs


def rotate_neighbors(x, cos, sin):
    """Rotation of the pairs (2i, 2i + 1)."""
    middle = (1,) * (x.ndim - 3)
    cos = cos.reshape(*cos.shape[:2], *middle, -1)
    sin = sin.reshape(*sin.shape[:2], *middle, -1)
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


def mutated(monkeypatch, *, params=lambda p: p, cfg=lambda c: c, case="pangu_pro_moe", **routing):
    """Distance from the golden logits with one thing changed."""
    if routing:
        monkeypatch.setattr(moe, "router_weights", functools.partial(router, **routing))
    weights, config = load(case)
    return distance(forward(cfg(config))(params(weights), golden(case)["tokens"]), case)


def test_the_routers_stand_in_is_right_without_a_fault(monkeypatch):
    assert mutated(monkeypatch, scale_first=False) <= TOLERANCE


def test_a_softmax_inside_each_group_shows(monkeypatch):
    assert mutated(monkeypatch, softmax_axes=-1) > VISIBLE


def test_renormalized_weights_show(monkeypatch):
    assert mutated(monkeypatch, cfg=lambda c: with_moe(c, renormalize=True)) > VISIBLE


def test_a_missing_renormalization_shows(monkeypatch):
    cfg = load("qwen3_moe")[1]
    layers = [
        dataclasses.replace(x, moe=x.moe and dataclasses.replace(x.moe, renormalize=False))
        for x in cfg.layers
    ]
    plain = dataclasses.replace(cfg, layers=tuple(layers))
    assert mutated(monkeypatch, cfg=lambda _: plain, case="qwen3_moe") > VISIBLE


def test_interleaved_groups_show(monkeypatch):
    assert mutated(monkeypatch, params=interleave_groups) > VISIBLE


def test_scaling_before_selection_shows(monkeypatch):
    assert mutated(monkeypatch, scale_first=True) > VISIBLE


def test_a_missing_router_scale_shows(monkeypatch):
    ones = lambda p: map_named(  # noqa: E731
        lambda name, x: jnp.ones_like(x) if name.endswith("router/scale") else x, p
    )
    assert mutated(monkeypatch, params=ones) > VISIBLE


@pytest.mark.parametrize("case", ["pangu_pro_moe", "pangu_embedded", "llama3"])
@pytest.mark.parametrize("which", ["query", "key", "value", "out"])
def test_a_missing_attention_bias_shows(monkeypatch, which, case):
    params = functools.partial(without, f"attention/{which}/bias")
    weights, cfg = load(case)
    logits = clean_forward(cfg)(params(weights), golden(case)["tokens"])
    assert distance(logits, case) > VISIBLE


@pytest.mark.parametrize("case", CASES)
def test_swapped_gate_and_up_show(case):
    params, cfg = load(case)
    logits = clean_forward(cfg)(swap_gate_and_up(params), golden(case)["tokens"])
    assert distance(logits, case) > VISIBLE


@pytest.mark.parametrize("case", ["pangu_pro_moe", "llama2"])
def test_rotating_neighboring_pairs_shows(monkeypatch, case):
    monkeypatch.setattr(attention, "rotate", rotate_neighbors)
    assert mutated(monkeypatch, case=case) > VISIBLE


def test_a_missing_rope_scaling_shows(monkeypatch):
    def plain(cfg):
        return dataclasses.replace(cfg, rope=dataclasses.replace(cfg.rope, scaling=None))

    assert mutated(monkeypatch, cfg=plain, case="llama3") > VISIBLE


def test_a_wrong_epsilon_shows(monkeypatch):
    cfg = lambda c: dataclasses.replace(c, norm_eps=1e-2)  # noqa: E731
    assert mutated(monkeypatch, cfg=cfg, case="qwen3") > VISIBLE
