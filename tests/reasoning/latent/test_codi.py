"""CODI's loss against one that is written out row by row, and what its parts do to gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import thinker
from pangu_jax.reasoning.latent import codi
from pangu_jax.reasoning.latent.answer import solve
from pangu_jax.reasoning.latent.batches import phase_batches, widths
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig

OWN = MethodConfig(align=0.7, teach=0.3)
PHASES = codi.METHOD.phases(CurriculumConfig(9, stages=2), 9)


@pytest.fixture(scope="module")
def wise(model):
    """The tiny decoder with a projection."""
    params, plain = model
    cfg = codi.model(plain, OWN)
    found = thinker.from_decoder(params, cfg, key=jax.random.key(1))
    assert found["embed"] is params["embed"] and cfg.projection == plain.width
    return found, cfg


def projected(params, state):
    up, down, last = (params["thought"][name] for name in ("up", "down", "norm"))
    x = state @ up["kernel"] + up["bias"]
    x = x * (1 + jax.scipy.special.erf(x / 2**0.5)) / 2
    x = x @ down["kernel"] + down["bias"]
    return (x - x.mean()) / jnp.sqrt(x.var() + 1e-5) * last["scale"] + last["bias"]


def layers_of(naive, params, x, cfg):
    """[T, D] embeddings to the states of every layer, the last one after the final norm."""
    found = []
    for run, layer in zip(params["runs"], cfg.layers, strict=True):  # runs of one layer
        x = naive.layer(jax.tree.map(lambda leaf: leaf[0], run), x, layer.attention, cfg)
        found.append(x)
    return [*found[:-1], naive.norm(params["norm"]["scale"], x, cfg.norm_eps)]


def mean_nats(params, states, row, first):
    scores = jax.nn.log_softmax(states @ params["head"]["kernel"])
    told = range(row.given, len(row.tail))
    return -sum(scores[first + i - 1, row.tail[i]] for i in told) / len(told)


def reference(naive, cfg, problems, markers):
    """The loss with two thoughts, rows one by one."""

    def loss(params):
        nats, ours, theirs = 0.0, [], []
        for problem in problems:
            row = codi.slots(problem, PHASES[0], markers, 0)
            x = naive.inputs(params, row.prefix, 2, row.tail, cfg, step=projected)
            first = len(row.prefix) + 2
            states = layers_of(naive, params, x, cfg)
            nats += mean_nats(params, states[-1], row, first)
            ours.append([s[first + row.tail.index(13)] for s in states])
            row = codi.teacher(problem, markers)
            x = params["embed"]["table"][jnp.asarray([*row.prefix, *row.tail])]
            states = layers_of(naive, params, x, cfg)
            nats += OWN.teach * mean_nats(params, states[-1], row, len(row.prefix))
            theirs.append(
                [jax.lax.stop_gradient(s[len(row.prefix) + row.tail.index(13)]) for s in states]
            )
        apart = 0.0
        for layer in range(2):
            one = jnp.stack([states[layer] for states in ours])
            two = jnp.stack([states[layer] for states in theirs])
            gap = jnp.abs(one - two)
            smooth = jnp.mean(jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5))
            apart += smooth / jnp.sqrt(((two - two.mean()) ** 2).sum() / (two.size - 1))
        return nats + OWN.align * apart / 3 * len(problems)  # the embeddings are the third

    return loss


@pytest.fixture(scope="module")
def found(wise, problems, markers):
    """Loss, rows, parts and gradients of a batch, and the problems in it."""
    params, cfg = wise
    (width,) = widths(problems, codi.METHOD, PHASES, markers)
    made = phase_batches(problems, codi.METHOD, PHASES[0], markers, width, batch=2, seed=(4,))
    batch = next(made)
    asked = [
        next(x for x in problems if x.question == tuple(row[row > 0][1 : 1 + len(x.question)]))
        for row in batch["teacher"]["tokens"]
    ]
    loss = codi.distillation_loss(cfg, start=width.start, thoughts=2, feedback="projected", own=OWN)

    def summed(params):
        total, *more = loss(params, None, batch, None)
        return total, more

    total = jax.jit(jax.value_and_grad(summed, has_aux=True))
    return total(params), asked


@pytest.mark.long
def test_loss_and_gradients_are_those_of_rows_one_by_one(naive, wise, found, markers):
    params, cfg = wise
    ((total, (rows, parts)), grads), asked = found
    want = jax.jit(jax.value_and_grad(reference(naive, cfg.decoder, asked, markers)))(params)
    np.testing.assert_allclose(total, want[0], rtol=1e-5)
    np.testing.assert_allclose(rows, 2, rtol=1e-6)
    chex.assert_trees_all_close(grads, want[1], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(
        total, parts["nats"] + 0.7 * parts["distance"] + 0.3 * parts["teacher_nats"], rtol=1e-5
    )
    assert float(jnp.abs(grads["thought"]["up"]["kernel"]).max()) > 1e-4


def test_the_teachers_states_have_no_gradient_and_equal_ones_no_distance():
    rng = np.random.default_rng(0)
    one, two = (jnp.asarray(rng.normal(size=(3, 5)) * 2, jnp.float32) for _ in range(2))
    slopes = jax.jit(jax.grad(codi.distance, argnums=(0, 1)))(one, two)
    assert jnp.abs(slopes[0]).min() > 0 and not slopes[1].any()
    assert codi.distance(two, two) == 0
    np.testing.assert_allclose(codi.distance(one, two), codi.distance(-one, -two), rtol=1e-6)


@pytest.mark.long
def test_answers_come_from_projected_thoughts(naive, wise, problems, markers):
    params, cfg = wise
    params, plain = thinker.written_out(params, cfg)
    given = []

    def noted(thoughts, key):
        given.append(thoughts)
        return thoughts

    more = {"cfg": plain, "max_new_tokens": 4, "batch": 3, "exchange": noted}
    written = solve(params, problems, codi.METHOD, PHASES[0], markers, **more)
    row, ids = codi.slots(problems[1], PHASES[0], markers, 0), written[1].ids

    @jax.jit
    def best(params):
        x = naive.inputs(params, row.prefix, 2, [*row.tail[:1], *ids], plain, step=projected)
        scores = naive.states(params, x, plain) @ params["head"]["kernel"]
        thoughts = x[len(row.prefix) : len(row.prefix) + 2]
        return jnp.argmax(scores, -1)[len(x) - len(ids) - 1 : -1], thoughts

    wanted, thoughts = best(params)
    assert ids == tuple(wanted.tolist()) and written[1].thoughts == 2
    np.testing.assert_allclose(given[0][1], thoughts, rtol=1e-4, atol=1e-5)
