"""Policy losses against plain loops, closed forms, finite differences, and what must not matter."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.losses.policy import DAPO, GRPO, advantages, dr_grpo, policy_loss
from pangu_jax.losses.policy_config import PolicyConfig

CONFIGS = {
    "grpo": dataclasses.replace(GRPO, kl=0.05),
    "dapo": DAPO,
    "dr_grpo": dr_grpo(7),
    "uneven": PolicyConfig(
        clip_low=0.1, clip_high=0.4, average_over="token", largest_weight=1.2, kl=0.3
    ),
}
B, T = 6, 5


@functools.cache
def case(seed=0):
    """Log-probabilities of now, of sampling, proximal and reference; advantages; a mask."""
    rng = np.random.default_rng(seed)
    names = ("log_probs", "behavior", "proximal", "reference")
    found = {name: rng.uniform(-2, -0.5, (B, T)).astype(np.float32) for name in names}
    mask = np.arange(T) < rng.integers(1, T + 1, B)[:, None]
    mask[2] = False
    return {**found, "advantage": rng.normal(size=B).astype(np.float32), "mask": mask}


def naive(log_probs, behavior, advantage, mask, cfg, proximal=None, reference=None):
    """The sum and its divisor, token by token."""
    log_probs, behavior, advantage = (np.float64(x) for x in (log_probs, behavior, advantage))
    total, tokens, sequences = 0.0, 0, 0
    for row in range(len(advantage)):
        losses = []
        for t in range(len(mask[row])):
            if not mask[row][t]:
                continue
            near = behavior[row][t] if proximal is None else proximal[row][t]
            w = min(math.exp(near - behavior[row][t]), cfg.largest_weight)
            u, a = math.exp(log_probs[row][t] - near), advantage[row]
            clipped = min(max(u, 1 - cfg.clip_low), 1 + cfg.clip_high)
            loss = -w * min(u * a, clipped * a)
            if cfg.kl:
                q = reference[row][t] - log_probs[row][t]
                loss += cfg.kl * (math.exp(q) - q - 1)
            losses.append(loss)
        if not losses:
            continue
        tokens, sequences = tokens + len(losses), sequences + 1
        by = {"token": 1, "sequence": len(losses), "constant": cfg.longest}[cfg.average_over]
        total += sum(losses) / by
    return total, tokens if cfg.average_over == "token" else sequences


@functools.cache
def compiled(cfg):
    def loss(log_probs, rest):
        rest = dict(rest)
        args = [rest.pop(name) for name in ("behavior", "advantage", "mask")]
        value, weight, sums = policy_loss(log_probs, *args, cfg=cfg, **rest)
        return value, (weight, sums)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def found(cfg, **changes):
    """Loss, divisor, gradient by the log-probabilities, sums."""
    arrays = {**case(), **changes}
    rest = {k: jnp.asarray(v) for k, v in arrays.items() if k != "log_probs" and v is not None}
    (value, (weight, sums)), grad = compiled(cfg)(jnp.asarray(arrays["log_probs"]), rest)
    return float(value), float(weight), np.asarray(grad), {k: float(v) for k, v in sums.items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stale", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_loop(name, stale):
    cfg, arrays = CONFIGS[name], dict(case())
    if not stale:
        arrays["proximal"] = None
    value, weight, grad, _ = found(cfg, proximal=arrays["proximal"])
    want, divisor = naive(cfg=cfg, **arrays)
    assert value == pytest.approx(want, rel=1e-5, abs=1e-6) and weight == divisor
    step, flat = 1e-4, arrays["log_probs"].astype(np.float64)
    for place in np.ndindex(B, T):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[place] += sign * step
            ends.append(naive(cfg=cfg, **{**arrays, "log_probs": moved})[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        assert grad[place] == pytest.approx(slope, rel=1e-4, abs=1e-6), place


def test_the_cases_clip_on_both_sides():
    arrays = case()
    ratio = np.exp(arrays["log_probs"] - arrays["behavior"])[arrays["mask"]]
    sign = np.broadcast_to(arrays["advantage"][:, None], (B, T))[arrays["mask"]] > 0
    assert (sign & (ratio > 1.28)).any() and (~sign & (ratio < 0.8)).any()
    _, weight, grad, sums = found(DAPO, proximal=None)
    flat = (sign & (ratio > 1.28)) | (~sign & (ratio < 0.8))
    assert sums["clipped"] == flat.sum() and weight == flat.size
    q = (arrays["log_probs"] - arrays["behavior"])[arrays["mask"]]
    assert sums["kl_behavior"] == pytest.approx((np.exp(q) - q - 1).sum(), rel=1e-4)
    assert not grad[arrays["mask"]][flat].any() and grad[arrays["mask"]][~flat].all()


def test_the_distance_from_the_reference_is_told_for_each_token():
    arrays = case()
    q = (arrays["reference"] - arrays["log_probs"])[arrays["mask"]].astype(np.float64)
    for name in ("grpo", "dapo"):
        *_, sums = found(dataclasses.replace(CONFIGS[name], kl=0.1), proximal=None)
        per_token = (np.exp(q) - q - 1).mean()
        _, divisor, *_ = found(CONFIGS[name], proximal=None)
        assert sums["kl"] / divisor == pytest.approx(per_token, rel=1e-4)


def test_right_after_sampling_it_is_the_policy_gradient():
    arrays = case()
    same = arrays["log_probs"]
    for cfg in (GRPO, DAPO, dr_grpo(7)):
        lengths = np.maximum(arrays["mask"].sum(-1, keepdims=True), 1)
        by = {"token": 1, "sequence": lengths, "constant": 7}[cfg.average_over]
        _, _, grad, sums = found(cfg, behavior=same, proximal=None)
        want = -arrays["advantage"][:, None] * arrays["mask"] / by
        np.testing.assert_allclose(grad, want, rtol=1e-6)
        assert sums["clipped"] == 0 and sums["kl_behavior"] == pytest.approx(0, abs=1e-6)


def test_fresh_samples_need_no_correction():
    plain, corrected = (found(DAPO, proximal=p) for p in (None, case()["behavior"]))
    assert plain[0] == corrected[0] and plain[3] == corrected[3]
    np.testing.assert_array_equal(plain[2], corrected[2])


def test_the_weight_of_old_samples_is_truncated_and_has_no_gradient():
    far = case()["behavior"] + 10
    _, weight, _, sums = found(DAPO, proximal=far)
    assert sums["weight_ratio"] == pytest.approx(DAPO.largest_weight * weight)
    rest = {k: jnp.asarray(v) for k, v in case().items()}

    def loss(proximal, behavior):
        args = (behavior, rest["advantage"], rest["mask"])
        return policy_loss(rest["log_probs"], *args, cfg=DAPO, proximal=proximal)[0]

    for grad in jax.jit(jax.grad(loss, (0, 1)))(rest["proximal"], rest["behavior"]):
        assert not np.any(grad)


@pytest.mark.parametrize("name", CONFIGS)
def test_order_and_padding_do_not_matter(name):
    cfg, arrays = CONFIGS[name], case()
    want = found(cfg)
    order = np.random.default_rng(1).permutation(B)
    got = found(cfg, **{k: v[order] for k, v in arrays.items()})
    assert got[:2] == pytest.approx(want[:2], rel=1e-6)
    junk = {"mask": False, "log_probs": np.nan, "behavior": np.inf, "proximal": -np.inf}
    wide = {
        k: np.pad(v, ((0, 0), (0, 3)), constant_values=junk.get(k, 9.0))
        for k, v in arrays.items()
        if v.ndim == 2
    }
    got = found(cfg, **wide)
    assert got[:2] == pytest.approx(want[:2], rel=1e-6)
    np.testing.assert_allclose(got[2][:, :T], want[2], rtol=1e-5, atol=1e-7)
    assert not got[2][:, T:].any()


def test_advantages_are_those_of_plain_arithmetic():
    rewards = np.array([[1.0, 0.0, 0.0, 5.0], [0.3, 0.7, 0.2, 0.9]])
    usable = np.array([[True, True, True, False], [True] * 4])
    for scale in (True, False):
        got, counts = advantages(jnp.asarray(rewards), jnp.asarray(usable), divide_by_std=scale)
        for row in range(2):
            there = rewards[row][usable[row]]
            want = (there - there.mean()) / (there.std() + 1e-6 if scale else 1)
            np.testing.assert_allclose(got[row][usable[row]], want, rtol=1e-5)
        np.testing.assert_array_equal(counts, usable)
        assert got[0, 3] == 0


def test_shifting_rewards_changes_nothing_and_scaling_as_it_should():
    rng = np.random.default_rng(0)
    rewards, usable = jnp.asarray(rng.uniform(size=(4, 6)), jnp.float32), jnp.ones((4, 6), bool)
    for scale in (True, False):
        base = advantages(rewards, usable, divide_by_std=scale)[0]
        shifted = advantages(rewards + 3, usable, divide_by_std=scale)[0]
        np.testing.assert_allclose(shifted, base, atol=1e-5)
        times = advantages(8 * rewards, usable, divide_by_std=scale)[0]
        np.testing.assert_allclose(times, base if scale else 8 * base, rtol=1e-4)
        np.testing.assert_allclose(base.sum(-1), 0, atol=1e-5)


def test_a_group_of_equal_rewards_changes_neither_loss_gradient_nor_divisor():
    rewards = jnp.array([[1.0, 0.0], [0.1, 0.1], [jnp.nan, 1.0]])
    usable = jnp.array([[True, True], [True, True], [False, True]])
    gain, counts = advantages(rewards, usable)
    np.testing.assert_array_equal(counts, [[True, True], [False, False], [False, False]])
    assert not gain[1:].any() and np.isfinite(gain).all()
    for cfg in CONFIGS.values():
        mask = case()["mask"] | True
        whole = found(cfg, advantage=gain.reshape(-1), mask=mask * np.reshape(counts, (-1, 1)))
        some = {k: v[:2] for k, v in case().items()}
        part = found(cfg, **{**some, "advantage": gain[0], "mask": mask[:2]})
        assert whole[:2] == pytest.approx(part[:2], rel=1e-6)
        np.testing.assert_allclose(whole[2][:2], part[2], rtol=1e-6)
        assert not whole[2][2:].any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"clip_low": 1.5}, "clip_low"),
        ({"average_over": "constant"}, "longest"),
        ({"longest": 5}, "longest"),
        ({"average_over": "constant", "longest": 0}, "longest"),
        ({"average_over": "median"}, "average_over"),
        ({"largest_weight": 0.5}, "largest_weight"),
        ({"kl": -1.0}, "kl"),
    ],
)
def test_settings_that_are_none_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        PolicyConfig(**changes)


def test_a_kl_term_needs_a_reference():
    with pytest.raises(InputError, match="reference"):
        found(dataclasses.replace(GRPO, kl=0.1), reference=None)
