"""Of a teacher's answers the shortest right one is taught, and nothing that cannot be told."""

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.reasoning.rejection_sampling import Chosen, choose
from pangu_jax.reasoning.reward import Sample, Score
from pangu_jax.reasoning.reward_sources import answer, per_sample

RULE = per_sample(answer)


def said(*texts, gold="8", tokens=None):
    counts = tokens or [0] * len(texts)
    return [
        Sample("q", text, text, "number", gold, tokens=n)
        for text, n in zip(texts, counts, strict=True)
    ]


def test_the_shortest_right_answer_is_chosen_and_the_rest_is_counted():
    loop = "so we add and " * 20 + "8"
    found = choose(said("It is 7.", "After long thought it is 8.", loop, "It is 8.", "8?"), RULE)
    assert found == Chosen(4, looped=1, wrong=1)
    assert choose(said("It is 8", "8 it is, I think", tokens=[9, 5]), RULE).place == 1
    assert choose(said("8", "8"), RULE).place == 0


def test_a_model_has_the_second_word_and_is_asked_no_more_than_needed():
    asked = []

    def model(samples):
        asked.extend(sample.text for sample in samples)
        return [Score({"8": 0.0, "is 8": None}.get(s.text, 1.0)) for s in samples]

    found = choose(said("It is 8.", "is 8", "8", "7", "It is 8, surely"), RULE, model)
    assert found == Chosen(0, wrong=1, refused=1, unknown=1)
    assert asked == ["8", "is 8", "It is 8."]


def test_what_cannot_be_told_is_not_taught():
    assert choose(said("8", "9", gold="none"), RULE) == Chosen(None, unknown=2)
    failed = lambda samples: [Score(None, "broken", failed=True) for _ in samples]  # noqa: E731
    assert choose(said("8"), failed) == Chosen(None, unknown=1)
    assert choose(said("8"), RULE, failed) == Chosen(None, unknown=1)


@pytest.mark.parametrize("samples", [[], [*said("8"), Sample("other", "8", "8", "number", "8")]])
def test_answers_to_no_one_question_are_refused(samples):
    with pytest.raises(InputError, match="answers to one question"):
        choose(samples, RULE)
