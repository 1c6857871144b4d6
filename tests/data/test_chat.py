"""Dialogues against strings written by hand from the published format."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from pangu_jax.core.errors import InputError
from pangu_jax.data import chat
from pangu_jax.data.chat import Reply, opens_thinking, render, stop_ids
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


HAND += [
    (
        [user("x"), {"role": "tool", "content": "3"}, {"role": "function", "content": "f"}],
        {"add_generation_prompt": False},
        "[unused9]系统：[unused10][unused9]用户：x[unused10][unused9]工具：3[unused10]"
        "[unused9]方法：f[unused10]",
    )
]

OTHERS = [
    (
        "llama3",
        [user("Hello")],
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "llama3",
        [system(" Be brief.\n"), user("1+1?"), assistant("\n2 "), user("你好")],
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "chatml",
        [user("Hello")],
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml",
        [system("Be brief."), user(" 1+1?\n"), assistant("2"), user("你好")],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 1+1?\n<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
]


@pytest.mark.parametrize(("template", "messages", "want"), OTHERS)
def test_llama_3_and_chatml_are_written_as_by_hand(template, messages, want):
    assert render(messages, template) == want
    opening = render([user("x")], template).removeprefix(
        render([user("x")], template, add_generation_prompt=False)
    )
    closed = render(messages, template, add_generation_prompt=False)
    assert opening and closed + opening == want


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
        ([user("x"), {"role": "robot", "content": "y"}], {}, "message 1 needs a role of system"),
        ([user("x"), "y"], {}, "message 1 is no object"),
        ([user("x")], {"template": "llama3", "mode": "fast"}, "the template has no modes"),
        ([{"role": "user"}], {}, "message 0"),
        ([{"role": "user", "content": ["x"]}], {}, "message 0"),
    ],
)
def test_what_cannot_be_written_is_refused(messages, options, words):
    with pytest.raises(InputError, match=words):
        render(messages, options.pop("template", "pangu"), **options)


def test_stop_ids_are_the_tokenizers_own_and_the_templates(tmp_path):
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


def tagged(tmp_path):
    """A tokenizer of single characters whose thinking tags and stop are special tokens."""
    characters = [chr(i) for i in range(32, 127)]
    vocab = {c: i for i, c in enumerate(["<s>", "[unused10]", "[unused16]", "[unused17]"])}
    vocab |= {c: i + len(vocab) for i, c in enumerate(characters)}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(c, special=True) for c in list(vocab)[:4]])
    inner.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


THOUGHTS = [
    ("[unused16]so it is[unused17] 4 ", "so it is", "4"),
    ("[unused16][unused17]4", "", "4"),
    ("just 4", "", "just 4"),
    ("[unused16]never ends", "never ends", ""),
    ("a[unused1", "", "a[unused1"),
    ("[unused16]a[unused17]b[unused16]c[unused17]d", "ac", "bd"),
]


@pytest.mark.parametrize(("text", "thought", "answer"), THOUGHTS)
@pytest.mark.parametrize("kind", ["tokens", "bytes"])
def test_a_reply_is_cut_into_thinking_and_answer(text, thought, answer, kind, tmp_path):
    tokenizer = tagged(tmp_path) if kind == "tokens" else ByteTokenizer()
    reply, parts = Reply(tokenizer, chat.TEMPLATES["pangu"].thinking), []
    for token in tokenizer.encode(text):
        parts += reply.push(token)
    parts += reply.finish()
    assert (reply.thought, reply.answer) == (thought, answer)
    assert "".join(t for inside, t in parts if inside).strip() == thought
    assert "".join(t for inside, t in parts if not inside).strip() == answer
    whole = Reply(tokenizer, chat.TEMPLATES["pangu"].thinking)
    whole.take(tokenizer.encode(text))
    assert (whole.thought, whole.answer) == (thought, answer)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [("so it is[unused17] 4", "so it is", "4"), ("never ends", "never ends", ""),
     ("[unused17]4", "", "4")],
)  # fmt: skip
def test_a_reply_may_begin_inside_the_thinking(text, thought, answer, tmp_path):
    for tokenizer in (tagged(tmp_path), ByteTokenizer()):
        whole, reply = (
            Reply(tokenizer, chat.TEMPLATES["pangu"].thinking, starts_in_thinking=True)
            for _ in range(2)
        )
        whole.take(tokenizer.encode(text))
        assert (whole.thought, whole.answer) == (thought, answer)
        parts = [part for token in tokenizer.encode(text) for part in reply.push(token)]
        parts += reply.finish()
        assert (reply.thought, reply.answer) == (thought, answer)
        assert parts[0][0] or not thought


def test_a_prompt_that_ends_in_an_open_tag_opens_the_thinking():
    for end, opened in (("<think>", True), ("<think>\n\n", True), ("<think>\n</think>\n", False)):
        assert opens_thinking("<|im_start|>assistant\n" + end, "chatml") == opened
    assert not opens_thinking("<think>", "llama3")  # it knows no such span


def test_a_reply_without_tags_is_all_answer():
    reply = Reply(ByteTokenizer(), None)
    parts = [part for token in "a<think>é".encode() for part in reply.push(token)]
    assert "".join(text for _, text in parts) == "a<think>é"
