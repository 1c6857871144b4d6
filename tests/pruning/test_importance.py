"""Scores against loops over tokens, and what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder
from pangu_jax.pruning import importance, moments, stats, taylor
from pangu_jax.pruning.allocate import Target
from pangu_jax.pruning.axes import Sizes
from pangu_jax.pruning.choose import choose_channels, choose_heads
from pangu_jax.pruning.compress import plan
from pangu_jax.pruning.norm_inputs import norm_inputs
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.stats import LayerStats, SweepConfig

D, F = 6, 9


def layer(seed=0, scale=1.0, order=None, flat=False):
    """One site's statistics from explicit tokens, [windows, T, ...]."""
    rng = np.random.default_rng(seed)
    x, h = rng.normal(size=(4, 30, D)), rng.normal(size=(4, 30, F)) * np.arange(1, F + 1)
    weights = {n: rng.normal(size=(D, F)) for n in ("gate", "up")}
    weights["down"] = rng.normal(size=(F, D))
    if flat:  # whitened inputs and orthogonal rows: the output varies alike in all directions
        h = rng.normal(size=(4, 30, D))
        h = np.linalg.qr(h.reshape(-1, D) - h.reshape(-1, D).mean(0))[0].reshape(4, 30, D)
        weights = {n: w[:, :D] for n, w in weights.items()}
        weights["down"] = np.linalg.qr(rng.normal(size=(D, D)))[0]
    if order is not None:
        x, h = x[:, order], h[:, order]
    x, h = x * scale, h * scale
    with jax.enable_x64(True):
        sums = moments.add(moments.zeros(h.shape[-1], jnp.float64), jnp.asarray(h))
        tree = {"mlp": {n: {"kernel": jnp.asarray(w)} for n, w in weights.items()}}
        tree["attention"] = {"out": {"kernel": jnp.zeros((1, 1, 2, D))}}
        squares = jnp.asarray((x**2).sum((0, 1)))
    found = LayerStats(tree, None, None, sums, None, squares, None, None, None, None)
    return found, x.reshape(-1, D), h, weights


def pca_score(x, h, weights):
    """SlimLLM's formula on the tokens."""
    h = h.reshape(len(x), -1)
    y = h @ weights["down"]
    centered = y - y.mean(0)
    values, axes = np.linalg.eigh(centered.T @ centered)
    omega = 1 / (1 + np.exp(-values / values.mean()))
    norm = np.sqrt((x**2).sum(0))
    score = np.zeros(h.shape[1])
    for i in range(h.shape[1]):
        score[i] = np.linalg.norm(weights["gate"][:, i] * norm)
        score[i] += np.linalg.norm(weights["up"][:, i] * norm)
        projected = [weights["down"][i] @ axes[:, j] * omega[j] for j in range(D)]
        score[i] += np.linalg.norm(h[:, i]) * np.linalg.norm(projected)
    return score


def test_the_pca_score_is_the_papers_formula_on_the_tokens():
    found, x, h, weights = layer()
    np.testing.assert_allclose(
        importance.channel_scores("slimllm", found), pca_score(x, h, weights), rtol=1e-8
    )


def test_it_ignores_the_order_of_tokens_and_ranks_alike_at_any_scale():
    base = importance.channel_scores("slimllm", layer()[0])
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(
        importance.channel_scores("slimllm", layer(order=order)[0]), base, rtol=1e-9
    )
    scaled = importance.channel_scores("slimllm", layer(scale=7.0)[0])
    np.testing.assert_allclose(scaled, 7 * base, rtol=1e-9)


def test_with_flat_eigenvalues_it_is_a_product_of_norms():
    found, x, h, weights = layer(flat=True)
    norm = np.sqrt((x**2).sum(0))
    want = np.linalg.norm(h.reshape(-1, D), axis=0) * np.linalg.norm(weights["down"], axis=1)
    want = want / (1 + np.exp(-1.0))
    for name in ("gate", "up"):
        want = want + np.linalg.norm(weights[name] * norm[:, None], axis=0)
    np.testing.assert_allclose(importance.channel_scores("slimllm", found), want, rtol=1e-6)


def test_a_channel_that_writes_where_nothing_varies_ranks_below():
    found, x, h, weights = layer()
    down = np.zeros((F, D))
    down[:, 0] = 1.0  # all write along axis 0 ...
    down[3] = np.eye(D)[1]  # ... but channel 3, as strongly, along axis 1
    h[..., 3] = 0.01 * h[..., 4]
    h[..., 5] = 0.01 * h[..., 4]
    for n in ("gate", "up"):
        weights[n][:, 3] = weights[n][:, 5]
    with jax.enable_x64(True):
        sums = moments.add(moments.zeros(F, jnp.float64), jnp.asarray(h))
        mlp = {n: {"kernel": jnp.asarray(w)} for n, w in {**weights, "down": down}.items()}
        found = found.replace(channels=sums, weights={**found.weights, "mlp": mlp})
    score = importance.channel_scores("slimllm", found)
    assert score[3] < score[5]


def test_scores_of_the_baselines_by_hand():
    found, _, h, weights = layer(2)
    flat, down = h.reshape(-1, F), weights["down"]
    want = {
        "minitron": np.sqrt((np.abs(h).mean(1) ** 2).sum(0)),
        "flap": flat.var(0) * (down**2).sum(1),
        "wanda-sp": np.linalg.norm(flat, axis=0) * np.abs(down).sum(1),
        "magnitude": np.sqrt(
            (weights["gate"] ** 2).sum(0) + (weights["up"] ** 2).sum(0) + (down**2).sum(1)
        ),
    }
    for method, value in want.items():
        np.testing.assert_allclose(
            importance.channel_scores(method, found), value, rtol=1e-8, err_msg=method
        )
    first, second = (importance.channel_scores("random", found, seed=s) for s in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, importance.channel_scores("random", found, seed=0))
    for name in ("taylor", "glue"):
        with pytest.raises(InputError, match=r"gradients|method must be one of"):
            importance.channel_scores(name, found)


def test_group_scores_take_the_group_as_a_whole(model):
    small = model(groups=3, heads=2, layers=1)
    found = stats.collect(
        small.params, small.tokens, cfg=small.cfg, sweep_cfg=SweepConfig(held_out=0)
    ).layers[0]
    each = np.asarray(found.heads.absolute, np.float64).reshape(3, 2, 4)
    np.testing.assert_allclose(
        importance.group_scores("minitron", found), np.sqrt(each.sum((1, 2))), rtol=1e-6
    )
    np.testing.assert_allclose(
        importance.head_scores("minitron", found), np.sqrt(each.sum(2)), rtol=1e-6
    )
    attention = {n: np.asarray(x["kernel"]) for n, x in found.weights["attention"].items()}
    q, k, v, o = (attention[name].astype(float) for name in ("query", "key", "value", "out"))
    squares = [[(q[:, g, h] ** 2).sum() + (o[g, h] ** 2).sum() for h in range(2)] for g in range(3)]
    shared = [(k[:, g] ** 2).sum() + (v[:, g] ** 2).sum() for g in range(3)]
    np.testing.assert_allclose(importance.head_scores("magnitude", found), np.sqrt(squares))
    np.testing.assert_allclose(
        importance.group_scores("magnitude", found), np.sqrt(np.sum(squares, 1) + shared)
    )
    # What a group adds to the residual, from its second moments.
    kernel = np.asarray(found.weights["attention"]["out"]["kernel"], np.float64)
    second = np.asarray(found.heads.outer, np.float64) / float(found.tokens)
    for g in range(3):
        w = kernel[g].reshape(8, -1)
        want = np.sqrt(np.trace(w.T @ second[8 * g : 8 * g + 8, 8 * g : 8 * g + 8] @ w))
        assert importance.contribution_norms(found)[g] == pytest.approx(want, rel=1e-6)
    # Behind a norm: u becomes gain * u / r.
    gain, r = np.linspace(0.5, 2, 16), 3.0
    scaled = {"attention": {"out": {"kernel": jnp.asarray(kernel * gain / r)}}}
    want = importance.contribution_norms(found.replace(weights=scaled))
    norm = {"attention_post_norm": {"scale": jnp.asarray(gain)}}
    rms = jnp.full((2, 3), r * float(found.tokens))
    behind = found.replace(weights={**found.weights, **norm}, post_rms=rms)
    np.testing.assert_allclose(importance.contribution_norms(behind), want, rtol=1e-5)


def test_taylor_gradients_share_a_compilation(model, at_most):
    small = model(layers=1, rows=4)
    at_most(1, decoder, "apply")
    for _ in range(2):
        taylor.saliency(small.params, small.tokens, cfg=small.cfg, batch=2)


def test_taylor_is_weight_times_gradient_summed_over_all_of_a_units_weights(model):
    small = model(layers=1, rows=4)
    (found,) = taylor.saliency(small.params, small.tokens, cfg=small.cfg, batch=2)

    @jax.jit
    @jax.grad
    def gradient(params):
        hidden = decoder.apply(params, small.tokens[:, :-1], cfg=small.cfg).hidden
        chance = jax.nn.log_softmax(decoder.logits(params, hidden, cfg=small.cfg))
        return -jnp.take_along_axis(chance, small.tokens[:, 1:, None], -1).sum()

    products = jax.tree.map(lambda w, g: np.abs(w * g)[0], small.params, gradient(small.params))
    attention, mlp = (products["runs"][0][name] for name in ("attention", "mlp"))
    q, k, v, o = (attention[name]["kernel"] for name in ("query", "key", "value", "out"))
    want = {
        "heads": [[q[:, g, h].sum() + o[g, h].sum() for h in range(2)] for g in range(4)],
        "groups": [q[:, g].sum() + k[:, g].sum() + v[:, g].sum() + o[g].sum() for g in range(4)],
        "channels": [
            sum(mlp[n]["kernel"][:, c].sum() for n in ("gate", "up"))
            + mlp["down"]["kernel"][c].sum()
            for c in range(12)
        ],
    }
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("method", ["slimllm", "flap", "wanda-sp", "magnitude"])
def test_each_group_keeps_its_own_best_head(model, method):
    """Planted: the second head matters in groups 0 and 2, the first in 1 and 3; group 0 goes."""
    small = model(layers=1)
    kernel = small.params["runs"][0]["attention"]["out"]["kernel"]
    factors = jnp.asarray([[0.1, 1], [20, 2], [3, 30], [40, 4]])
    small.params["runs"][0]["attention"]["out"]["kernel"] = kernel * factors[..., None, None]
    found = stats.collect(small.params, small.tokens, cfg=small.cfg).layers[0]
    chosen = choose_heads(found, Sizes(3, 1, 12), Recipe(method=method), 0)
    assert (chosen.units, chosen.heads) == ((1, 2, 3), ((0,), (1,), (0,)))


def test_hidden_channels_are_ranked_by_what_every_norm_lets_through(model):
    small = model(rows=4)
    want = np.zeros(16)
    inputs = norm_inputs(small.params, jnp.asarray(small.tokens), cfg=small.cfg)
    for name, x in list(inputs)[:-1]:  # the last norm is not a layer's
        layer, norm = name.split("/")
        gain = np.asarray(small.params["runs"][0][norm]["scale"][int(layer)])
        x = np.asarray(x, float)
        x /= np.sqrt((x**2).mean(-1, keepdims=True) + small.cfg.norm_eps)
        windows = np.abs(x * gain).mean(1)
        want += np.sqrt((windows**2).sum(0))
    found = stats.collect(small.params, small.tokens, cfg=small.cfg)
    np.testing.assert_allclose(importance.hidden_scores(found.layers), want, rtol=1e-5)
    made = plan(found, Target(hidden=0.5), recipe=Recipe(method="minitron", repair="none"))
    assert made.hidden == tuple(np.sort(np.argsort(-want)[:8]).tolist())


def test_the_quirk_of_the_released_code_spares_the_lowest():
    found = layer()[0]
    scores = importance.channel_scores("slimllm", found)
    order = np.argsort(scores)
    size = type("S", (), {"ffn": 5})
    kept, _ = choose_channels(found, size, Recipe(), 0)
    assert set(kept) == set(order[4:].tolist())
    kept, _ = choose_channels(found, size, Recipe(keep_lowest=0.2), 0)
    assert set(kept) == {*order[:2].tolist(), *order[6:].tolist()}
