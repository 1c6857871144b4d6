"""Cut checkpoints against torch's logits with the same units silenced; golden, no torch needed."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.models import decoder
from pangu_jax.pruning import export, plan
from pangu_jax.pruning.prune import prune

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = {
    "llama2": "llama",
    "llama3": "llama",
    "mistral": "mistral",
    "gemma2": "gemma2",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "pangu_embedded": "pangu-embedded",
}


def logits(params, cfg, tokens):
    hidden = decoder.apply(params, jnp.asarray(tokens), cfg=cfg).hidden
    return np.asarray(decoder.logits(params, hidden, cfg=cfg))


def loaded(case):
    with np.load(GOLDEN / case / "golden.npz") as dense, np.load(GOLDEN / case / "pruned.npz") as x:
        tokens, found = dense["tokens"], dict(x)
    params, cfg = hf.load(GOLDEN / case, dtype="float32")
    return params, cfg, tokens, found


def cut(cfg, found):
    base, parts = plan.identity(cfg), []
    for part, groups, channels in zip(base.layers, found["groups"], found["channels"], strict=True):
        groups = tuple(groups.tolist())
        heads = tuple(part.heads[i] for i in range(len(groups)))
        parts.append(dataclasses.replace(part, groups=groups, heads=heads,
                                         channels=tuple(channels.tolist())))  # fmt: skip
    return dataclasses.replace(base, layers=tuple(parts))


# Biases, norms of heads, soft-caps and windows; Llama's are written as Qwen's are.
@pytest.mark.long(but=2)
@pytest.mark.parametrize(
    "case", [pytest.param(f, marks=[pytest.mark.slow] * f.startswith("llama")) for f in FAMILIES]
)
def test_cut_equals_silenced_in_torch_also_after_export(case, tmp_path):
    params, cfg, tokens, found = loaded(case)
    small, small_cfg = prune(params, cut(cfg, found), cfg=cfg)
    np.testing.assert_allclose(logits(small, small_cfg, tokens), found["logits"], atol=1e-5)
    out = tmp_path / "out"
    export.export(small, small_cfg, out, kind="uniform", family=FAMILIES[case])
    np.testing.assert_allclose(
        logits(*hf.load(out, dtype="float32"), tokens), found["logits"], atol=1e-5
    )


# Of the cut parameters; a plan replayed on any machine gives these.
DIGESTS = {
    "llama2": "30451c3ba876d5ea",
    "qwen2": "7f626459d57a1ef1",
    "qwen3": "e673a84c03fdfcb8",
}


@pytest.mark.parametrize("case", DIGESTS)
def test_a_plans_file_gives_the_same_bits_everywhere(case, tmp_path):
    params, cfg, _, found = loaded(case)
    made = dataclasses.replace(cut(cfg, found), model_hash=plan.digest(params))
    plan.save(made, tmp_path / "plan.json")
    replayed = plan.load(tmp_path / "plan.json")
    plan.check_hash(replayed, params)
    assert plan.digest(prune(params, replayed, cfg=cfg)[0]) == DIGESTS[case]


@pytest.mark.long(but=2)
@pytest.mark.parametrize("case", FAMILIES)
def test_other_units_give_other_logits(case):
    """What the test above would miss if the golden logits hardly depended on the choice."""
    params, cfg, tokens, found = loaded(case)
    found["channels"] = np.arange(found["channels"].shape[1])[None].repeat(len(cfg.layers), 0)
    other = logits(*prune(params, cut(cfg, found), cfg=cfg), tokens)
    assert np.abs(other - found["logits"]).max() > 0.05
