"""Repair: equal to fits on the tokens, nested errors, planted cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.pruning import moments, repair

RNG = np.random.default_rng(1)
UNITS, WIDTH, TOKENS = 10, 6, 400
KEEP = np.asarray([True, True, False, True, True, False, True, True, False, True])


def data(seed=0, mean=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, UNITS)) @ rng.normal(size=(UNITS, UNITS)) + mean
    return x, rng.normal(size=(UNITS, WIDTH)), rng.normal(size=WIDTH)


def sums(x):
    return moments.add(moments.zeros(x.shape[1], jnp.float64), jnp.asarray(x)[:, None])


def fitted(x, kernel, bias, method, keep=KEEP, ridge=None, held=None):
    with jax.enable_x64(True):
        found = repair.fit(
            sums(x),
            None if held is None else sums(held),
            jnp.asarray(kernel),
            None if bias is None else jnp.asarray(bias),
            keep,
            method=method,
            ridge=ridge,
        )
        new = np.asarray(found[0])
        return new, None if found[1] is None else np.asarray(found[1]), found[2]


def error(x, kernel, bias, new, shift):
    whole = x @ kernel + (0 if bias is None else bias)
    return ((whole - x @ new - (0 if shift is None else shift)) ** 2).mean()


@pytest.mark.parametrize("method", repair.METHODS)
@pytest.mark.parametrize("biased", [True, False])
def test_reported_errors_are_those_on_the_tokens(method, biased):
    x, kernel, bias = data()
    bias = bias if biased else None
    new, shift, report = fitted(x, kernel, bias, method)
    assert not new[~KEEP].any()
    assert report.repaired == pytest.approx(error(x, kernel, bias, new, shift), rel=1e-8)
    cut = error(x, kernel, None, kernel * KEEP[:, None], None)
    assert report.cut == pytest.approx(cut, rel=1e-8)
    assert report.output == pytest.approx((x @ kernel).var(0).mean(), rel=1e-8)
    assert report.repaired <= report.cut * (1 + 1e-12)
    if method not in repair.BIASED:
        assert shift is None if bias is None else np.array_equal(shift, bias)


def test_affine_is_a_straight_line_per_output():
    x, kernel, bias = data(2)
    new, shift, _ = fitted(x, kernel, bias, "affine")
    kept, whole = x @ (kernel * KEEP[:, None]), x @ kernel
    for j in range(WIDTH):
        slope, offset = np.polyfit(kept[:, j], whole[:, j], 1)
        np.testing.assert_allclose(new[:, j], kernel[:, j] * KEEP * slope, atol=1e-8)
        assert shift[j] == pytest.approx(offset + bias[j], abs=1e-8)
        (through,) = np.linalg.lstsq(kept[:, j : j + 1], whole[:, j], rcond=None)[0]
        scaled, _, _ = fitted(x, kernel, bias, "scale")
        np.testing.assert_allclose(scaled[:, j], kernel[:, j] * KEEP * through, atol=1e-8)


def test_a_small_ridge_is_the_least_squares_and_a_large_one_the_bias():
    x, kernel, bias = data(3)
    design = np.concatenate([x[:, KEEP], np.ones((TOKENS, 1))], 1)
    want = np.linalg.lstsq(design, x @ kernel, rcond=None)[0]
    new, shift, _ = fitted(x, kernel, bias, "ridge", ridge=0.0)
    np.testing.assert_allclose(new[KEEP], want[:-1], atol=1e-7)
    np.testing.assert_allclose(shift, want[-1] + bias, atol=1e-7)
    free = np.linalg.lstsq(x[:, KEEP], x @ kernel, rcond=None)[0]
    new, _, _ = fitted(x, kernel, bias, "ridge-no-bias", ridge=0.0)
    np.testing.assert_allclose(new[KEEP], free, atol=1e-7)
    far, shift, _ = fitted(x, kernel, bias, "ridge", ridge=1e9)
    near, other, _ = fitted(x, kernel, bias, "bias")
    np.testing.assert_allclose(far, near, atol=1e-6)
    np.testing.assert_allclose(shift, other, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_more_freedom_never_fits_worse(seed):
    x, kernel, _ = data(seed)
    names = ("none", "bias", "affine", "ridge")
    errors = [fitted(x, kernel, None, m, ridge=0.0)[2].repaired for m in names]
    for more, less in zip(errors[1:], errors, strict=False):
        assert more <= less * (1 + 1e-9)
    free = [fitted(x, kernel, None, m, ridge=0.0)[2].repaired for m in ("scale", "ridge-no-bias")]
    assert errors[3] <= free[1] * (1 + 1e-9) <= free[0] * (1 + 1e-9) <= errors[0] * (1 + 1e-9)


def test_what_the_kept_units_can_say_is_recovered():
    """Dropped units whose output is, per dimension, a scaled and shifted copy of the kept ones'."""
    x, kernel, _ = data(4)
    x[:, ~KEEP] = 0
    x[:, 2] = x[:, KEEP] @ RNG.normal(size=KEEP.sum()) + 3.0
    assert fitted(x, kernel, None, "ridge", ridge=0.0)[2].repaired < 1e-10
    assert fitted(x, kernel, None, "bias")[2].repaired > 1e-2
    # One kept and one dropped unit, the dropped one a straight line of the kept one.
    a = RNG.normal(size=(TOKENS, 1))
    pair = np.concatenate([a, 2 * a + 5], 1)
    w = RNG.normal(size=(2, WIDTH))
    keep = np.asarray([True, False])
    new, shift, report = fitted(pair, w, None, "affine", keep=keep)
    assert report.repaired < 1e-10
    np.testing.assert_allclose(pair @ new + shift, pair @ w, atol=1e-9)


def test_a_ridge_that_has_no_solution_gives_way_to_a_larger_one():
    """Second moments that rounding has made indefinite: an eigenvalue of -0.05."""
    outer = jnp.array([[1, 1.05, 0.5], [1.05, 1, 0.5], [0.5, 0.5, 1]], jnp.float32)
    sums = moments.Moments(jnp.float32(1), jnp.zeros(3), outer, jnp.zeros(3))
    kernel, keep = jnp.asarray(RNG.normal(size=(3, WIDTH)), jnp.float32), [True, True, False]
    new, _, report = repair.fit(sums, None, kernel, None, keep, method="ridge")
    assert report.ridge == 0.1 and np.isfinite(new).all()
    with pytest.raises(InputError, match="not finite; try another or a larger ridge"):
        repair.fit(sums, None, kernel, None, keep, method="ridge", ridge=0.01)


def test_the_ridge_is_the_best_on_held_out_tokens():
    x, kernel, _ = data(5)
    few, held = x[:12], x[200:]
    _, _, report = fitted(few, kernel, None, "ridge", held=held)
    scores = {}
    for value in repair.RIDGES:
        new, shift, _ = fitted(few, kernel, None, "ridge", ridge=value)
        scores[value] = error(held, kernel, None, new, shift)
    assert report.ridge == min(scores, key=scores.get) != repair.RIDGES[0]
    assert report.held_out == pytest.approx(min(scores.values()), rel=1e-4)
    # With it, what was held out is fitted too.
    new, shift, _ = fitted(few, kernel, None, "ridge", held=held)
    both = np.concatenate([few, held])
    want, other, _ = fitted(both, kernel, None, "ridge", ridge=report.ridge)
    np.testing.assert_allclose(new, want, atol=1e-9)
    np.testing.assert_allclose(shift, other, atol=1e-9)


@pytest.mark.parametrize("dropped", [5, 33])
def test_few_or_many_dropped_inputs_are_solved_for_alike(dropped):
    """More dropped inputs than outputs, or fewer; 40 inputs, so that indices are filled up."""
    rng = np.random.default_rng(7)
    x, held = (rng.normal(size=(n, 40)) @ rng.normal(size=(40, 40)) + 1 for n in (60, 300))
    kernel, keep = rng.normal(size=(40, WIDTH)), np.ones(40, bool)
    keep[rng.permutation(40)[:dropped]] = False
    new, shift, report = fitted(x, kernel, None, "ridge", keep=keep, held=held)
    scores = {}
    for value in repair.RIDGES:
        a = x[:, keep] - x[:, keep].mean(0)
        lost = x[:, ~keep] @ kernel[~keep]
        system = a.T @ a / 60 + value * a.var(0).mean() * np.eye(keep.sum())
        gained = np.linalg.solve(system, a.T @ (lost - lost.mean(0)) / 60)
        offset = lost.mean(0) - x[:, keep].mean(0) @ gained
        apart = held[:, ~keep] @ kernel[~keep] - held[:, keep] @ gained - offset
        scores[value] = (apart**2).mean()
        one, other, _ = fitted(x, kernel, None, "ridge", keep=keep, ridge=value)
        np.testing.assert_allclose(one[keep], kernel[keep] + gained, atol=1e-8)
        np.testing.assert_allclose(other, offset, atol=1e-8)
    assert report.ridge == min(scores, key=scores.get)
    assert report.held_out == pytest.approx(min(scores.values()), rel=1e-9)
    assert not new[~keep].any() and np.isfinite(shift).all()


def test_nothing_dropped_changes_nothing_and_dead_units_do_no_harm():
    x, kernel, bias = data(6)
    for method in repair.METHODS:
        new, shift, report = fitted(x, kernel, bias, method, keep=np.ones(UNITS, bool))
        np.testing.assert_allclose(new, kernel, rtol=1e-12)
        np.testing.assert_allclose(shift, bias, atol=1e-9)
        assert report.repaired < 1e-18
        new, _, _ = fitted(np.zeros_like(x), kernel, bias, method)
        assert np.isfinite(new).all()
    with pytest.raises(InputError, match="repair must be one of"):
        fitted(x, kernel, bias, "glue")
