"""Answers of models that think: those of the naive form, and what exchanged thoughts change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent.ablation import ABLATIONS, ablation
from pangu_jax.reasoning.latent.answer import Written, final_answer, solve
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import score, scores
from pangu_jax.reasoning.latent.slots import Encoded

LAST, NEW = Phase(1, 2, ALL), 5
STOP = 8  # an id that some answers have, and none first, so that answers have several tokens


@pytest.fixture(scope="module")
def ask(model, markers, problems):
    params, cfg = model
    markers = dataclasses.replace(markers, stop=STOP)

    def ask(name, phase=LAST, problems=problems, **more):
        more = {"max_new_tokens": NEW, "batch": 2, **more}
        return solve(params, problems, METHODS[name], phase, markers, cfg=cfg, **more)

    return ask


@pytest.mark.long(but=1)
@pytest.mark.parametrize(
    "name, unmarked", [("coconut", False), ("pause", False), ("no-cot", False), ("coconut", True)]
)
def test_answers_are_those_of_the_naive_form(ask, naive, model, markers, problems, name, unmarked):
    params, cfg = model
    phase = Phase(1, 0 if name == "no-cot" else 2, ALL, unmarked=unmarked)
    thoughts = METHODS[name].thoughts(phase)
    found = ask(name, phase)
    assert NEW in [len(written.ids) for written in found]
    for problem, written in zip(problems, found, strict=True):
        row = METHODS[name].slots(problem, phase, markers, 0)
        wanted = jax.jit(lambda p, row=row, ids=written.ids: naive.best(p, row, thoughts, ids, cfg))
        assert written.ids == tuple(wanted(params).tolist())
        assert len(written.ids) == NEW or written.ids[-1] == STOP
        assert written.thoughts == phase.slots


def test_answers_leave_the_positions_of_a_chain_free(naive, open_model, markers, problems):
    (params, cfg), room = open_model, 6
    markers, phase = dataclasses.replace(markers, stop=STOP), Phase(1, 0, ALL, chain_room=room)
    more = {"cfg": cfg, "max_new_tokens": NEW, "batch": 2}
    found = solve(params, problems, METHODS["icot"], phase, markers, **more)
    for problem, written in zip(problems, found, strict=True):
        row, ids = METHODS["icot"].slots(problem, phase, markers, 0), written.ids
        wanted = jax.jit(lambda p, row=row, ids=ids: naive.best(p, row, 0, ids, cfg, room))
        assert ids == tuple(wanted(params).tolist())
    usual = dataclasses.replace(phase, chain_room=0)
    assert found != solve(params, problems, METHODS["icot"], usual, markers, **more)
    with pytest.raises(InputError, match="where a chain begins that keeps its position"):
        left = dataclasses.replace(phase, removed_steps=0, removed_tokens=2)
        solve(params, problems, METHODS["icot"], left, markers, **more)


def test_steps_and_answers_of_a_problem_are_never_read(ask, problems):
    bare = [Encoded(problem.question, (), (0,)) for problem in problems]
    assert ask("coconut", problems=bare) == ask("coconut")


@pytest.mark.long
def test_exchanged_thoughts_reach_the_answer_in_the_order_of_problems(ask, problems):
    seen = []

    def exchange(thoughts, key):
        seen.append(np.asarray(thoughts))
        return 3 * jnp.ones_like(thoughts)

    changed = ask("coconut", exchange=exchange)
    assert [part.shape for part in seen] == [(3, 2, 8)]  # of all problems, whatever the batch
    assert ask("coconut", exchange=lambda thoughts, _: thoughts) == ask("coconut") != changed
    assert ask("coconut", problems=problems[::-1], batch=3) == ask("coconut", batch=3)[::-1]


@pytest.mark.long
def test_thoughts_are_handed_on_in_half_precision(ask):
    kinds = []

    def exchange(thoughts, key):
        kinds.append(thoughts.dtype)
        return thoughts

    found = ask("coconut", exchange=exchange, how=How(dtype="bfloat16"))
    assert {str(kind) for kind in kinds} == {"bfloat16"} and len(found) == 3


def test_ablations(model, markers):
    params, cfg = model
    thoughts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8)), jnp.float32)
    key = jax.random.key(0)
    made = {name: ablation(name, params, markers, cfg=cfg)(thoughts, key) for name in ABLATIONS}
    assert not made["zeros"].any()
    size = jnp.linalg.norm(made["noise"], axis=-1)
    np.testing.assert_allclose(size, jnp.linalg.norm(thoughts, axis=-1), rtol=1e-5)
    assert not np.allclose(made["noise"], thoughts, atol=0.1)
    drawn = (made["noise"] / size[..., None]).reshape(6, 8)  # a direction each
    assert (drawn @ drawn.T - jnp.eye(6)).max() < 0.95
    np.testing.assert_array_equal(made["other"][1], thoughts[0])
    np.testing.assert_array_equal(made["pause"][2, 1], params["embed"]["table"][12])
    with pytest.raises(InputError, match="ablation must be one of zeros, noise, other, pause"):
        ablation("bogus", params, markers, cfg=cfg)


@pytest.mark.long
def test_every_problem_gets_the_thoughts_of_another_whatever_the_batch(ask, model, markers):
    params, cfg = model
    swap = ablation("other", params, markers, cfg=cfg)
    seen = []

    def noted(thoughts, key):
        seen.append((np.asarray(thoughts), np.asarray(swap(thoughts, key))))
        return thoughts

    for batch in (1, 2, 3):
        ask("coconut", exchange=noted, batch=batch)
    for own, given in seen:
        np.testing.assert_allclose(given, seen[0][0][[2, 0, 1]], rtol=1e-5, atol=1e-6)
        assert np.abs(own - given).max(axis=(1, 2)).min() > 0.1
    with pytest.raises(InputError, match="at least two problems"):
        swap(jnp.ones((1, 2, 8)), jax.random.key(0))


def test_scores_stand_beside_those_of_exchanged_thoughts(model, markers, problems):
    params, cfg = model
    more = {"cfg": cfg, "max_new_tokens": NEW, "batch": 2}
    asked = []
    found = scores(
        params,
        problems,
        METHODS["coconut"],
        LAST,
        markers,
        progress=lambda kind, done, total: asked.append((kind, done, total)),
        **more,
    )
    assert list(found) == ["", *ABLATIONS] and all(one.problems == 3 for one in found.values())
    assert [x for x in asked if x[1] == 3] == [(kind, 3, 3) for kind in found]
    assert list(scores(params, problems, METHODS["pause"], LAST, markers, **more)) == [""]
    with pytest.raises(InputError, match="another problem, which needs at least two"):
        scores(params, problems[:1], METHODS["coconut"], LAST, markers, **more)


def test_a_score_is_of_the_thoughts_that_its_name_says(model, markers, problems, monkeypatch):
    params, cfg = model
    seen = []

    def solved(params, problems, *_, exchange, **__):
        seen.append(exchange)
        return [Written((), None, len(seen))] * len(problems)

    monkeypatch.setattr("pangu_jax.reasoning.latent.score.solve", solved)
    more = {"cfg": cfg, "max_new_tokens": NEW}
    found = scores(params, problems, METHODS["coconut"], LAST, markers, **more)
    assert [one.thoughts for one in found.values()] == [1, 2, 3, 4, 5] and seen[0] is None
    thoughts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 8)), jnp.float32)
    key = jax.random.key(0)
    for name, exchange in zip([*found][1:], seen[1:], strict=True):
        wanted = ablation(name, params, markers, cfg=cfg)(thoughts, key)
        np.testing.assert_array_equal(exchange(thoughts, key), wanted)


def test_what_cannot_be_asked_is_refused(ask):
    with pytest.raises(InputError, match="no thoughts to exchange"):
        ask("pause", exchange=lambda thoughts, _: thoughts)
    with pytest.raises(InputError, match="no problems"):
        ask("cot", problems=[])


def test_the_final_answer_is_between_its_mark_and_the_end(markers):
    assert final_answer((4, 13, 7, 8, 14), markers) == (7, 8)
    assert final_answer((13, 4, 13, 7, 14), markers) == (7,)
    assert final_answer((13, 14), markers) == ()
    assert final_answer((4, 13, 7), markers) is None  # cut off
    assert final_answer((7, 14), markers) is final_answer((), markers) is None


def test_a_score_counts_exact_answers(problems):
    written = [Written((1, 2), answer, 2) for answer in ((7,), (1, 2, 3), None)]
    found = dataclasses.asdict(score(written, problems, 2.0))
    assert found["accuracy"] == pytest.approx(1 / 3) and found["answered"] == pytest.approx(2 / 3)
    assert found["low"] < 1 / 3 < found["high"]
    assert (found["problems"], found["tokens"], found["thoughts"]) == (3, 2, 2)
    assert found["repeated"] == 0
    empty = score([Written((13, 14), (), 0)], problems[:1], 2.0)  # an answer, but a wrong one
    assert (empty.answered, empty.accuracy) == (1, 0)
    again = [problems[0], problems[1], dataclasses.replace(problems[0], answer=(1,))]
    repeated = dataclasses.asdict(score(written, again, 2.0))
    assert repeated == {**found, "repeated": 1}  # counted, though its answer is another
