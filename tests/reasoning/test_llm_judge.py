"""A model as a judge: its replies come from the engine, and are held against what is known."""

from types import SimpleNamespace as Namespace

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import TEMPLATES
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.reasoning import llm_judge
from pangu_jax.reasoning.llm_judge import agreement, make_asker
from pangu_jax.reasoning.reward import Score


def test_replies_are_those_of_their_prompts_without_thinking(monkeypatch):
    """In whatever order the engine ends them."""

    def answers(engine, requests):
        for place, request in reversed(list(enumerate(requests))):
            text = ByteTokenizer().decode(list(request.inputs))
            asked = text.partition("user\n")[2].partition("<|im_end|>")[0]
            assert text.endswith("<|im_start|>assistant\n") and request.max_new_tokens == 5
            ids = [*f"<think>{asked}?</think> no {asked}".encode(), *request.stop_ids[:1]]
            yield place, Namespace(ids=np.array(ids), finish_reason="stop")

    monkeypatch.setattr(llm_judge, "answers", answers)
    monkeypatch.setattr(llm_judge, "Engine", lambda params, **options: None)
    made = {"tokenizer": ByteTokenizer(), "template": TEMPLATES["chatml"], "max_new_tokens": 5}
    ask = make_asker(None, cfg=Namespace(vocab=264), **made)
    assert ask(["a", "b", "c"]) == ["no a", "no b", "no c"]


def test_agreement_counts_what_was_judged():
    scores = [Score(1.0), Score(0.0), Score(0.6), Score(None, failed=True), Score(None)]
    found = agreement(scores, np.array([True, True, False, True, False]))
    assert found.share.value == pytest.approx(1 / 3) and found.chance == pytest.approx(2 / 3)
    assert (found.judged, found.failed) == (3, 1)
    assert agreement(scores[:3], np.array([True, False, False])).chance == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="5 scores and 1 known"):
        agreement(scores, np.array([True]))
