"""The loss of distillation against plain numpy: which part has which weight."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.train.distill import distill_loss

LAYERS = (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),)
TEACHER = decoder.DecoderConfig(11, 8, LAYERS, logit_softcap=3.0)
STUDENT = decoder.DecoderConfig(11, 6, LAYERS, logit_softcap=2.0)
KEPT = (0, 2, 3, 5, 6, 7)


@pytest.fixture
def given(monkeypatch):
    """Models whose hidden states are parameters, a batch, and a key."""
    monkeypatch.setattr(
        decoder, "apply", lambda params, *_, **__: types.SimpleNamespace(hidden=params["hidden"])
    )
    rng = np.random.default_rng(0)

    def draw(width):
        kernel = rng.normal(size=(width, 11)).astype(np.float32)
        return {
            "hidden": rng.normal(size=(2, 5, width)).astype(np.float32),
            "head": {"kernel": kernel},
        }

    student, teacher = draw(6), draw(8)
    numbers = rng.integers(0, 11, (2, 5)).astype(np.int32)
    weights = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], np.float32)
    batch = {"tokens": numbers, "labels": numbers[:, ::-1], "weights": weights,
             "positions": numbers, "segments": numbers}  # fmt: skip
    return student, teacher, batch, jax.random.key(0)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_parts_are_weighed_softened_and_compared_on_the_channels_that_are_left(given):
    student, teacher, batch, key = given
    options = {"kl_weight": 0.5, "lm_weight": 3.0, "hidden_weight": 7.0, "temperature": 2.0}
    loss = jax.jit(distill_loss(TEACHER, STUDENT, hidden=KEPT, chunk=3, **options))
    total, weight, metrics = loss(student, teacher, batch, key)
    mine, theirs = (
        cap * np.tanh(x["hidden"].astype(float) @ x["head"]["kernel"] / cap)
        for x, cap in ((student, 2.0), (teacher, 3.0))
    )
    on = batch["weights"].astype(bool)
    nats = -np.take_along_axis(log_softmax(mine), batch["labels"][..., None], -1)[on].sum()
    q, p = log_softmax(mine / 2)[on], log_softmax(theirs / 2)[on]
    kl = 4 * (np.exp(p) * (p - q)).sum()
    a, b = student["hidden"][on], teacher["hidden"][on][:, KEPT]
    match = on.sum() * ((a - b) ** 2).mean() / (b**2).mean()
    assert float(weight) == 7
    for name, want in {"nats": nats, "kl": kl, "hidden": match}.items():
        assert float(metrics[name]) == pytest.approx(want, rel=1e-4), name
    assert float(total) == pytest.approx(3 * nats + 0.5 * kl + 7 * match, rel=1e-4)


def test_the_teacher_gets_no_gradient_and_the_student_all_of_it(given):
    student, teacher, batch, key = given
    loss = distill_loss(TEACHER, STUDENT, hidden=KEPT, hidden_weight=1.0)

    def value(student, hidden):
        return loss(student, {**teacher, "hidden": hidden}, batch, key)[0]

    mine, theirs = jax.jit(jax.grad(value, (0, 1)))(student, jnp.asarray(teacher["hidden"]))
    assert not theirs.any()
    assert all(leaf.any() for leaf in jax.tree.leaves(mine))


def test_both_models_keep_documents_apart_and_the_student_alone_draws(given, monkeypatch):
    student, teacher, batch, key = given
    batch = batch | {name: batch[name].copy() for name in ("positions", "segments")}
    seen = {}

    def apply(params, tokens, *, cfg, positions, segments, how, key=None):
        del how
        seen[cfg] = tokens, positions, segments, key
        return types.SimpleNamespace(hidden=params["hidden"])

    monkeypatch.setattr(decoder, "apply", apply)
    loss = distill_loss(TEACHER, STUDENT, hidden=KEPT)
    jax.eval_shape(lambda params: loss(params, teacher, batch, key), student)
    for cfg, own in ((STUDENT, key), (TEACHER, None)):
        want = batch["tokens"], batch["positions"], batch["segments"], own
        assert all(a is b for a, b in zip(seen[cfg], want, strict=True))


def test_what_cannot_be_distilled_is_refused():
    other = decoder.DecoderConfig(12, 6, LAYERS)
    for arguments, options, words in (
        ((TEACHER, other), {}, "vocabulary has 11 ids, the student's 12"),
        ((TEACHER, STUDENT), {"hidden_weight": 1.0}, "which 6 of the teacher's 8 channels"),
        ((TEACHER, STUDENT), {"kl_weight": -1.0}, "must not be negative"),
        ((TEACHER, STUDENT), {"temperature": 0.0}, "the temperature positive"),
    ):
        with pytest.raises(InputError, match=words):
            distill_loss(*arguments, **options)
