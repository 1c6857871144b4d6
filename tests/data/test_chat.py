"""Dialogues against strings written by hand from the published format."""

import pytest
from tokenizers import AddedToken, Tokenizer, models

from pangu_jax.core.errors import InputError
from pangu_jax.data import chat
from pangu_jax.data.chat import render, stop_ids
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


HAND = [
    (
        [user("Hello")],
        {},
        "[unused9]系统：[unused10][unused9]用户：Hello[unused10][unused9]助手：",
    ),
    (
        [system("Be brief."), user("1+1?\n"), assistant("2"), user("And 2+2?")],
        {"mode": "fast"},
        "[unused9]系统：Be brief.[unused10][unused9]用户：1+1?\n[unused10]"
        "[unused9]助手：2[unused10][unused9]用户：And 2+2? /no_think[unused10][unused9]助手：",
    ),
    (
        [user("你好"), assistant("你好！")],
        {"mode": "auto", "add_generation_prompt": False},
        "[unused9]系统：[unused10][unused9]用户：你好 /auto_think[unused10]"
        "[unused9]助手：你好！[unused10]",
    ),
]


@pytest.mark.parametrize(("messages", "options", "want"), HAND)
def test_dialogues_are_written_as_by_hand(messages, options, want):
    before = [dict(m) for m in messages]
    assert render(messages, "pangu", **options) == want
    assert messages == before


def test_slow_is_to_leave_the_messages_alone():
    for messages, _, _ in HAND:
        assert render(messages, "pangu", mode="slow") == render(messages, "pangu")


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([user("x")], {"template": "nobody"}, "unknown chat template 'nobody'; known: pangu"),
        ([user("x")], {"mode": "wild"}, "unknown think mode 'wild'; known: slow, fast, auto"),
        ([system("x")], {"mode": "fast"}, "needs a user turn"),
        ([], {}, "at least one message"),
        ([user("x"), {"role": "tool", "content": "y"}], {}, "message 1 needs a role of system"),
        ([{"role": "user"}], {}, "message 0"),
        ([{"role": "user", "content": ["x"]}], {}, "message 0"),
    ],
)
def test_what_cannot_be_written_is_refused(messages, options, words):
    with pytest.raises(InputError, match=words):
        render(messages, options.pop("template", "pangu"), **options)


def test_stop_ids_are_the_tokenisers_own_and_the_templates(tmp_path):
    inner = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "[unused10]": 3}, []))
    inner.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", "[unused10]")])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert stop_ids(tokenizer, "pangu") == (1, 3)
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 3}')
    assert stop_ids(load_tokenizer(tmp_path), "pangu") == (3,)
    assert stop_ids(ByteTokenizer(), "pangu") == (256,)
    with pytest.raises(InputError, match="unknown chat template"):
        stop_ids(tokenizer, "nobody")


def test_every_template_writes_its_own_roles():
    for name, template in chat.TEMPLATES.items():
        text = render([{"role": r, "content": f"<{r}>"} for r in template.roles], name)
        assert all(f"<{r}>" in text for r in template.roles)
