import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.eval.load_balance import imbalance_score
from pangu_jax.ops.routing import group_topk, router_weights

T, D, G, SIZE = 40, 12, 4, 4
E = G * SIZE


def draw(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, D)).astype(np.float32)
    kernel = (rng.normal(size=(D, G, SIZE)) * 0.5).astype(np.float32)
    scale = rng.uniform(0.2, 5, (G, SIZE)).astype(np.float32)
    return x, kernel, scale


def naive(x, kernel, scale, k, renormalize):
    """One token and one group at a time, in float64: {expert: weight} for each token."""
    z = x.astype(np.float64) @ kernel.reshape(D, -1).astype(np.float64)
    groups, size = kernel.shape[1:]
    out = []
    for t in range(len(x)):
        s = np.exp(z[t] - max(z[t]))
        s = s / sum(s)
        chosen = []
        for g in range(groups):
            members = list(range(g * size, (g + 1) * size))
            members.sort(key=lambda e, s=s: (-s[e], e))
            chosen += members[:k]
        total = sum(s[e] for e in chosen) if renormalize else 1.0
        out.append({e: s[e] / total * scale.reshape(-1)[e] for e in chosen})
    return out


def as_dicts(weights, ids):
    first = np.arange(ids.shape[1])[:, None] * (E // ids.shape[1])
    ids, weights = np.asarray(ids) + first, np.asarray(weights)
    return [
        dict(zip(i.reshape(-1).tolist(), w.reshape(-1), strict=True))
        for i, w in zip(ids, weights, strict=True)
    ]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("groups", "k"), [(4, 1), (4, 2), (2, 3), (1, 4)])
def test_routing_equals_a_loop_over_tokens_and_groups(groups, k, renormalize):
    x, kernel, scale = draw()
    kernel, scale = kernel.reshape(D, groups, -1), scale.reshape(groups, -1)
    got = router_weights(x, kernel, scale, k=k, renormalize=renormalize)
    assert got[0].dtype == jnp.float32 and got[1].dtype == jnp.int32
    for have, want in zip(as_dicts(*got[:2]), naive(x, kernel, scale, k, renormalize), strict=True):
        assert have.keys() == want.keys()
        np.testing.assert_allclose([have[e] for e in want], list(want.values()), rtol=2e-5)
    np.testing.assert_allclose(got[2].sum((1, 2)), 1, rtol=1e-5)


def test_the_scale_multiplies_after_selection_and_weights_do_not_sum_to_one():
    # Expert 0 is liked best, expert 1 would win after scaling.
    kernel = jnp.array([[[1.0, 0.8, -9.0, -9.0]]])
    scale = jnp.array([[1.0, 10.0, 1.0, 1.0]])
    weights, ids, probs = router_weights(jnp.ones((1, 1)), kernel, scale, k=1)
    assert int(ids[0, 0, 0]) == 0 and float(probs[0, 0, 1] * 10) > float(probs[0, 0, 0])
    np.testing.assert_allclose(weights[0, 0, 0], 1 / (1 + np.exp(-0.2) + 2 * np.exp(-10)), 1e-5)
    x, kernel, _ = draw()
    weights = router_weights(x, kernel, None, k=1)[0]
    assert weights.sum((1, 2)).max() < 0.99
    weights = router_weights(x, kernel, None, k=1, renormalize=True)[0]
    np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("case", ["random", "constant", "ties", "adversarial"])
def test_every_group_gets_k_and_grouped_routing_is_balanced_for_any_scores(case, k):
    rng = np.random.default_rng(1)
    scores = {
        "random": rng.normal(size=(T, 8, 8)),
        "constant": np.ones((T, 8, 8)),
        "ties": rng.integers(0, 2, (T, 8, 8)),
        "adversarial": np.zeros((T, 8, 8)) + 50 * np.eye(64)[3].reshape(8, 8),
    }[case].astype(np.float32)
    _, ids = group_topk(jnp.asarray(scores), k)
    for t in range(T):
        for g in range(8):
            want = sorted(range(8), key=lambda e: (-scores[t, g, e], e))[:k]
            assert ids[t, g].tolist() == want
    chosen = (np.asarray(ids) + 8 * np.arange(8)[:, None]).reshape(T, -1)
    for devices in (2, 4, 8):
        assert imbalance_score(chosen, experts=64, devices=devices) == 0
    if case == "adversarial":  # the score isn't wired to 0
        _, plain = group_topk(jnp.asarray(scores.reshape(T, 1, 64)), 8)
        assert imbalance_score(np.asarray(plain)[:, 0], experts=64, devices=8) == 8


def test_gradients_flow_through_the_chosen_weights_alone():
    x, kernel, scale = draw(2)
    rng = np.random.default_rng(3)
    back = rng.normal(size=(T, G, 2)).astype(np.float32)

    @jax.jit
    def grads(x, kernel, scale):
        def loss(x, kernel, scale):
            return (router_weights(x, kernel, scale, k=2)[0] * back).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(x, kernel, scale)

    dx, dkernel, dscale = grads(x, kernel, scale)
    _, ids, _ = router_weights(x, kernel, scale, k=2)
    z = x.astype(np.float64) @ kernel.reshape(D, E)
    s = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    ds, want_scale = np.zeros((T, E)), np.zeros(E)
    for t in range(T):
        for g in range(G):
            for j in range(2):
                e = g * SIZE + int(ids[t, g, j])
                ds[t, e] += back[t, g, j] * scale.reshape(-1)[e]
                want_scale[e] += back[t, g, j] * s[t, e]
    dz = s * (ds - (ds * s).sum(1, keepdims=True))
    np.testing.assert_allclose(dx, dz @ kernel.reshape(D, E).T, atol=1e-5)
    np.testing.assert_allclose(dkernel.reshape(D, E), x.T @ dz, atol=1e-5)
    np.testing.assert_allclose(dscale.reshape(-1), want_scale, atol=1e-5)


def test_bfloat16_activations_are_routed_in_float32():
    x, kernel, scale = draw(4)
    low = jnp.asarray(x, jnp.bfloat16)
    got = router_weights(low, jnp.asarray(kernel), scale, k=1)
    want = router_weights(low.astype(jnp.float32), kernel, scale, k=1)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    # Chips that multiply float32 in fewer bits are told not to: invisible in values on CPU.
    assert "HIGHEST" in str(jax.make_jaxpr(lambda x: router_weights(x, kernel, None, k=1))(x))


def test_one_group_renormalized_is_qwen3_moe_routing():
    x, kernel, _ = draw(5)
    weights, ids, _ = router_weights(x, kernel.reshape(D, 1, E), None, k=4, renormalize=True)
    z = x @ kernel.reshape(D, E)
    for t in range(T):
        order = np.argsort(-z[t], kind="stable")[:4]
        assert ids[t, 0].tolist() == order.tolist()
        s = np.exp(z[t, order] - z[t].max())  # the rest of the softmax cancels
        np.testing.assert_allclose(weights[t, 0], s / s.sum(), rtol=1e-5)


def test_vote_keep_limits_a_batch_to_the_experts_most_often_put_first():
    rng = np.random.default_rng(6)
    scores = rng.uniform(size=(30, 2, 8)).astype(np.float32)
    mask = rng.uniform(size=30) < 0.6
    weights, ids = group_topk(jnp.asarray(scores), 1, vote_keep=3, mask=jnp.asarray(mask))
    for g in range(2):
        votes = [0] * 8
        for t in range(30):
            votes[int(scores[t, g].argmax())] += bool(mask[t])
        kept = sorted(range(8), key=lambda e, votes=votes: (-votes[e], e))[:3]
        for t in range(30):
            want = max(kept, key=lambda e, g=g, t=t: scores[t, g, e])
            assert int(ids[t, g, 0]) == want and float(weights[t, g, 0]) == scores[t, g, want]
    exact, all_kept = group_topk(scores, 2), group_topk(scores, 2, vote_keep=8)
    np.testing.assert_array_equal(exact[1], all_kept[1])
    x, kernel, _ = draw()
    got = router_weights(x, kernel, None, k=1, vote_keep=1)[1]
    assert (got == got[:1]).all()  # one expert a group is left for everybody
    alone = router_weights(x[:1], kernel, None, k=1)[1]
    assert (router_weights(x, kernel, None, k=1)[1][:1] == alone).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"k": 5}, "k is 5"), ({"k": 0}, "k is 0"), ({"k": 2, "vote_keep": 1}, "must be 2")],
)
def test_impossible_choices_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        group_topk(jnp.ones((3, 2, 4)), **options)
