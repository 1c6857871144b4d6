"""The contrastive loss against a plain loop in float64, on one device and on several."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.losses.contrastive import info_nce
from pangu_jax.sharding.layout import Layout, batch_sharding
from pangu_jax.sharding.mesh import make_mesh
from pangu_jax.sharding.rules import preset

RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS = RNG.normal(size=(2, 8, 5))
NEGATIVES = RNG.normal(size=(8, 2, 5))
WEIGHTS = np.array([1, 0.5, 0, 1, 1, 0, 2, 1.0])


def search(queries, documents, weights, temperature):
    """Nats, and the weight of those whose own document is nearest; documents come in order."""
    nats = right = 0.0
    for i, query in enumerate(queries):
        if not weights[i]:
            continue
        scores = {j: float(query @ d) / temperature for j, d in documents.items()}
        nats += weights[i] * (math.log(sum(map(math.exp, scores.values()))) - scores[i])
        right += weights[i] * (max(scores, key=scores.get) == i)
    return nats, right


def by_hand(queries, documents, negatives, weights, temperature, symmetric):
    real = [i for i in range(len(queries)) if weights[i]]
    offered = {i: documents[i] for i in real}
    if negatives is not None:
        offered |= {(i, j): negatives[i, j] for i in real for j in range(negatives.shape[1])}
    nats, right = search(queries, offered, weights, temperature)
    if symmetric:
        back, _ = search(documents, {i: queries[i] for i in real}, weights, temperature)
        nats = (nats + back) / 2
    return nats, weights.sum(), right


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [None, NEGATIVES])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_the_loop_over_queries_and_documents(symmetric, negatives, weights):
    options = {"temperature": 0.7, "symmetric": symmetric}
    found = info_nce(QUERIES, DOCUMENTS, negatives, weights, **options)
    full = np.ones(8) if weights is None else weights
    want = by_hand(QUERIES, DOCUMENTS, negatives, full, 0.7, symmetric)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert {x.dtype for x in found} == {jnp.dtype("float32")}


def test_the_gradient_is_that_of_the_loop():
    def value(queries, documents, negatives):
        return info_nce(queries, documents, negatives, WEIGHTS, temperature=0.7, symmetric=True)[0]

    given = (QUERIES, DOCUMENTS, NEGATIVES)
    found = jax.jit(jax.grad(value, (0, 1, 2)))(*(x.astype(np.float32) for x in given))
    for which, grad in enumerate(found):
        direction = RNG.normal(size=grad.shape)
        ends = []
        for sign in (1, -1):
            moved = list(given)
            moved[which] = moved[which] + sign * 1e-5 * direction
            ends.append(by_hand(*moved, WEIGHTS, 0.7, True)[0])
        assert (grad * direction).sum() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)
    # Padding neither pulls nor is pulled at, and far vectors overflow nothing.
    assert not any(np.asarray(grad)[WEIGHTS == 0].any() for grad in found)
    assert np.isfinite(info_nce(1e4 * QUERIES, DOCUMENTS, temperature=1e-2)[0])


def test_half_precision_is_compared_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (QUERIES, DOCUMENTS)]
    want = by_hand(*(np.asarray(x, float) for x in half), None, np.ones(8), 0.05, False)
    np.testing.assert_allclose(info_nce(*half), want, rtol=1e-5)


@pytest.mark.long
def test_devices_compare_their_queries_with_the_documents_of_all():
    layout = Layout(make_mesh(data=2, fsdp=4), preset("fsdp"))
    given = [x.astype(np.float32) for x in (QUERIES, DOCUMENTS, NEGATIVES, WEIGHTS)]

    def value(queries, *rest, layout=None):
        return info_nce(queries, *rest, layout=layout, symmetric=True)[0]

    want = jax.value_and_grad(value)(*given)
    split = [jax.device_put(x, batch_sharding(x.shape, layout)) for x in given]
    assert split[0].addressable_shards[0].data.shape == (1, 5)
    found = jax.jit(jax.value_and_grad(lambda *x: value(*x, layout=layout)))(*split)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)  # of up to 50
