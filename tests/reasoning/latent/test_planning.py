"""Planning tokens: which steps get the same one."""

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.data.word_tokenizer import opened
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.planning import clusters, planned
from pangu_jax.reasoning.latent.slots import Encoded, plan_ids
from pangu_jax.reasoning.latent.task import encode_task, read_task, words_of


def test_steps_of_one_kind_get_one_token_in_front():
    sums = [(number, 50, number) for number in range(9)]
    products = [(number, 60, 60) for number in range(4)]
    problems = [Encoded((1,), (a, b), (2,)) for a, b in zip(sums, products * 3, strict=False)]
    found = planned(problems, (100, 101))
    assert [x.question for x in found] == [(1,)] * 9 and [x.answer for x in found] == [(2,)] * 9
    assert [tuple(step[1:] for step in x.steps) for x in found] == [x.steps for x in problems]
    assert {step[0] for x in found for step in x.steps[:1]} == {100}  # the more frequent kind
    assert {step[0] for x in found for step in x.steps[1:]} == {101}
    again = planned(problems[::-1], (100, 101))
    assert again[::-1] == found
    assert planned([Encoded((1,), (), (2,))], (100,)) == [Encoded((1,), (), (2,))]


def test_clusters_are_the_blobs_that_points_were_drawn_in():
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    kinds = rng.permutation(np.repeat(np.arange(4), (40, 30, 20, 10)))
    points = centers[kinds] + rng.normal(size=(100, 2))
    np.testing.assert_array_equal(clusters(points, 4), kinds)  # numbered by frequency
    few = clusters(points, 2)
    assert set(few) == {0, 1}
    for kind in range(2):  # each point is nearest to the mean of its own
        means = [points[few == k].mean(0) for k in range(2)]
        distances = [((points[few == kind] - mean) ** 2).sum(-1) for mean in means]
        assert (np.argmin(distances, 0) == kind).all()
    assert set(clusters(np.ones((5, 2)), 3)) == {0}  # equal points are of one kind


def test_a_task_with_planning_tokens_has_them_in_what_is_trained_on_alone():
    task = read_task("mult2x2", test=None, problems=30, tests=5)
    ids = encode_task(task, words_of(task, 4), plans=4)
    with opened(words_of(task, 4)) as tokenizer:
        assert ids.plans == plan_ids(tokenizer, 4)
    assert all(step[0] in ids.plans for x in ids.training for step in x.steps)
    assert len({step[0] for x in ids.training for step in x.steps}) > 1
    given = [token for x in ids.testing for step in x.steps for token in step]
    assert not set(given) & set(ids.plans) and max(ids.plans) < ids.vocab
    plain = encode_task(task, words_of(task))
    assert ids.longest == plain.longest + max(len(x.steps) for x in ids.training)


def test_tokens_that_are_missing_are_told():
    assert plan_ids(ByteTokenizer(), 3) == (261, 262, 263)
    with pytest.raises(InputError, match="bytes has 3 planning tokens, not 4"):
        plan_ids(ByteTokenizer(), 4)
    task = read_task("mult1x1", test=None, problems=9, tests=2)
    with pytest.raises(InputError, match="has 1 planning tokens, not 2"):
        encode_task(task, words_of(task, 1), plans=2)
    with pytest.raises(InputError, match="plans must be at least 1"):
        MethodConfig(plans=0)
