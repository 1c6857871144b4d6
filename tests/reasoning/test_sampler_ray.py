"""Rollouts on a local Ray: a worker that is killed loses its answers and nothing else."""

import os
import signal

import jax
import numpy as np
import optax
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import init
from pangu_jax.losses.policy import GRPO
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.reasoning import rl
from pangu_jax.reasoning.sampler_ray import RaySampler
from pangu_jax.reasoning.schedule_state import ScheduleConfig

ray = pytest.importorskip("ray", reason="needs ray: pip install 'pangu-jax[ray]'")

pytestmark = pytest.mark.slow  # it begins processes, each of which compiles

MODEL = decoder.DecoderConfig(13, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(24)),))


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """One for all tests: it takes long to begin."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(updates=8, staleness=2, on_update=None, **changes):
    """The figures of a run, and its sampler."""
    plan = ScheduleConfig(staleness, batch=2, group=2, slots=8)
    sizes = {"updates": updates, "length": 64, "max_new_tokens": 40, "stop_ids": (3,)}
    made, seen = [], []

    def make(params, **rest):
        made.append(RaySampler(params, workers=2, **rest))
        return made[-1]

    def told(line):
        seen.append(line)
        if on_update is not None:
            on_update(line, made[0])

    state = rl.train(
        init(decoder.spec(MODEL), key=jax.random.key(0)),
        changes.pop("prompt", lambda group: [1, 2 + group % 3]),
        lambda group, found: [float(np.mean(answer.ids == 7)) for answer in found],
        model=MODEL,
        cfg=rl.RlConfig(plan, GRPO, **sizes),
        optimizer=optax.adam(1e-2),
        sampler=changes.pop("sampler", make),
        on_update=told,
        **changes,
    )
    return state, seen


def test_a_worker_that_is_killed_loses_its_answers_and_nothing_else(tmp_path):
    def kills(line, sampler):
        if line["step"] in (3, 5):
            os.kill(sampler.pids()[line["step"] == 5], signal.SIGKILL)

    state, seen = run(on_update=kills, folder=tmp_path)
    assert [line["step"] for line in seen] == list(range(1, 9)) and int(state.step) == 8
    groups = [group for line in seen for group in line["groups"]]
    assert len(groups) == len(set(groups)) == 16
    assert max(age for line in seen for age in line["ages"]) <= 2 and seen[-1]["lost"] > 0
    assert seen[-1]["kl_behavior"] < 0.1, "scores are those of the weights that sampled"


def test_without_staleness_it_is_what_one_process_gives():
    here, want = run(updates=3, staleness=0, sampler=rl.LocalSampler)
    there, seen = run(updates=3, staleness=0)
    for name in ("groups", "ages", "reward", "tokens"):
        assert [line[name] for line in seen] == [line[name] for line in want]
    # Workers have fewer slots each, so scores are rounded otherwise.
    for x, y in zip(*map(jax.tree.leaves, (here.params, there.params)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_what_a_worker_cannot_begin_is_said():
    with pytest.raises(InputError, match="room for 64"):
        run(prompt=lambda group: [1] * 50)
