"""Accuracy on choices against one full forward pass a choice, and the files of questions."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.data.multiple_choice import Question, questions
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.eval.multiple_choice import PROMPT, choice_accuracy
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

CFG = decoder.DecoderConfig(264, 16, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),))
ASKED = [
    Question("Which?", ("a", "a longer one", "ü"), 1),
    Question("And now " * 3, ("yes", "no"), 0),
    Question("Why?", ("because", "so"), 1),
    Question("Who?", ("me", "you all", "them", "us"), 3),
]


def model():
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.4, jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )


def test_accuracies_are_those_of_one_forward_pass_a_choice():
    params, tokenizer, plain, normalized = model(), ByteTokenizer(), [], []
    forward = jax.jit(
        lambda t: jax.nn.log_softmax(
            decoder.logits(params, decoder.apply(params, t, cfg=CFG).hidden, cfg=CFG)
        )
    )
    for q in ASKED:
        scores = []
        for choice in q.choices:
            prompt = PROMPT.format(q.text).encode()
            ids = [256, *prompt, *f" {choice}".encode()]
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(ids)] = ids
            found = np.asarray(forward(padded))[0]
            scores.append(sum(found[i - 1, ids[i]] for i in range(1 + len(prompt), len(ids))))
        plain.append(int(np.argmax(scores)) == q.answer)
        sizes = [len(choice.encode()) for choice in q.choices]
        normalized.append(int(np.argmax(np.array(scores) / sizes)) == q.answer)
    for batch in (1, 3, 32):
        found = choice_accuracy(params, ASKED, cfg=CFG, tokenizer=tokenizer, batch=batch)
        assert found.accuracy == np.mean(plain) and found.right.tolist() == normalized
        assert found.normalized == np.mean(normalized)
        assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 1 / 4) / 4)
    assert plain != normalized  # so that one is not the other


def test_questions_of_three_sets_are_read(tmp_path):
    rows = [
        {"instruction": "What is E. coli? Answer Choices:\nA. a mouse\nB. a: b\n", "label": "B"},
        {"instruction": "Q: It is Answer choices: A: red, white, B: blue", "label": "A"},
        {"instruction": "Is it?", "label": "False"},
    ]
    path = tmp_path / "asked.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert questions(path) == [
        Question("What is E. coli?", ("a mouse", "a: b"), 1),
        Question("It is", ("red, white", "blue"), 0),
        Question("Is it?", ("yes", "no"), 1),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Is it?", "label": "A"}, "neither choices nor a label of True or False"),
        ({"instruction": "It. Answer Choices:\nA. one\nB. two", "label": "C"}, "label 'C'"),
        ({"instruction": "It. Answer Choices:\nA. one", "label": "A"}, "has the choices"),
        ({"instruction": 3, "label": "A"}, "has no text under the key"),
        ([1], "must be an object"),
    ],
)
def test_other_lines_are_refused_by_their_number(row, words, tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(InputError, match=words) as error:
        questions(path)
    assert "asked.jsonl line 2" in str(error.value)


def test_nothing_to_ask_is_refused(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="there is no question"):
        choice_accuracy(model(), [], cfg=CFG, tokenizer=ByteTokenizer())
