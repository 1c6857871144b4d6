"""How questions are put, and where in the text the answer is looked for."""

import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models

from pangu_jax.core.errors import InputError
from pangu_jax.data.chat import TEMPLATES
from pangu_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from pangu_jax.eval.answers import KINDS, equal, extract
from pangu_jax.reasoning.bench_prompts import EXAMPLES, Prompt, Prompter, asked, plain
from pangu_jax.reasoning.bench_tasks import Item
from pangu_jax.reasoning.code_tasks import CodeTask

SUM = Item("What is 1 + 1?", "number", "2")
HEAD = CodeTask("def f():\n", ("f()",), ("f",), "", "def f():\n", "    pass\n")
BODY = Item("def f():\n", "code", code=HEAD)
WRITE = Item("Write f.", "code", code=dataclasses.replace(HEAD, before=""))
TEXT = Prompter(ByteTokenizer(), "plain")
CHAT = Prompter(ByteTokenizer(), "chat", TEMPLATES["chatml"], "Be brief.")


def said(prompter, item, text, *, starts_in_thinking=False):
    prompt = Prompt(prompter.prompt(item).ids, starts_in_thinking)
    return prompter.read(item, prompt, [*text.encode(), *prompter.tokenizer.eos_ids])


def test_a_plain_question_is_cut_before_the_next():
    assert TEXT.text(SUM) == "Question: What is 1 + 1?\nAnswer:"
    assert said(TEXT, SUM, " It is 2.\n\nQuestion: What is 3?") == ("", " It is 2.\n")
    assert TEXT.found(SUM, " It is 2.\n") == "2"


def test_the_token_that_ends_an_answer_is_no_part_of_it():
    prompter = Prompter(ByteTokenizer(eos_ids=(ord("!"),)), "plain")
    assert said(prompter, SUM, "2") == ("", "2") and said(prompter, SUM, "2!") == ("", "2!")


def test_completions_keep_their_indentation_and_end_where_the_function_does():
    assert TEXT.text(BODY) == "def f():\n" == plain(BODY, shots=True)
    thought, text = said(TEXT, BODY, "    return 1\n\ndef g(): pass\n")
    assert (thought, TEXT.found(BODY, text)) == ("", "    return 1\n")
    assert TEXT.found(BODY, said(TEXT, BODY, "\nprint(f())")[1]) is None
    for more in ("\nassert f() == 2", "@cache\n", "# Then", '"""More'):
        assert said(TEXT, BODY, f"    return 1\n{more}")[1].strip() == "return 1"


def test_a_completion_keeps_the_space_that_its_tokenizer_leaves_out_of_texts(tmp_path):
    """As SentencePiece's do: the first space of what they decode is theirs."""
    names = ["<s>", *"abcdefghijklmnopqrstuvwxyz", "():\n", "▁", "▁▁▁▁", "(", ")", ":", "\n", "1"]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    prompter = Prompter(load_tokenizer(tmp_path), "plain")
    ids = [names.index(name) for name in ("▁▁▁▁", *"return", "▁", "1")]
    assert prompter.tokenizer.decode(ids) == "   return 1"
    assert prompter.read(BODY, Prompt([names.index(x) for x in "def"]), ids)[1] == "    return 1"


def test_a_task_in_plain_text_is_solved_in_a_block():
    assert TEXT.text(WRITE) == "Task: Write f.\nSolution:\n```python\n"
    assert said(TEXT, WRITE, "def f():\n    pass\n```\nMore")[1] == "def f():\n    pass"


def test_a_dialogue_has_the_system_turn_and_says_in_which_form_to_answer():
    text = CHAT.text(SUM)
    assert text.startswith("<|im_start|>system\nBe brief.") and "\\boxed{}" in text
    assert text.endswith("assistant\n") and "```python\ndef f():\n```" in CHAT.text(BODY)
    assert said(CHAT, SUM, "<think>3, or 4</think>It is \\boxed{2}.") == (
        "3, or 4",
        "It is \\boxed{2}.",
    )
    assert said(CHAT, SUM, "3</think>2", starts_in_thinking=True) == ("3", "2")
    assert said(CHAT, SUM, "<think>it goes on") == ("it goes on", "")
    assert CHAT.found(WRITE, "f is this: f") is None
    blocks = "```\ndef f():\n    pass\n```\nSo:\n```\n{}f()\n```"
    assert CHAT.found(WRITE, blocks.format("")) == "def f():\n    pass\n"
    assert CHAT.found(WRITE, blocks.format("def f(): 1\n")) == "def f(): 1\nf()\n"
    assert CHAT.found(SUM, "2 " + blocks) == "2"


@pytest.mark.parametrize("kind", EXAMPLES)
def test_answers_are_found_in_the_examples(kind):
    item = Item("q", kind)
    text = Prompter(ByteTokenizer(), "few-shot").text(item)
    for question, answer in EXAMPLES[kind]:
        assert question in text and answer in text
        if kind != "code":
            last = answer.removesuffix(".").rpartition(" ")[2]
            assert equal(last, extract(answer, kind), kind if kind != "maths" else "number")
    assert text.count("Question:" if kind != "code" else "Task:") == len(EXAMPLES[kind]) + 1


def test_think_modes_are_the_template_s_or_refused():
    slow, fast = (
        Prompter(ByteTokenizer(), m, TEMPLATES["pangu"]).text(SUM) for m in ("slow", "fast")
    )
    assert "/no_think[unused10]" in fast and fast.replace(" /no_think", "") == slow
    with pytest.raises(InputError, match="the template has no modes"):
        Prompter(ByteTokenizer(), "fast", TEMPLATES["chatml"]).text(SUM)
    with pytest.raises(InputError, match="needs a chat template"):
        Prompter(ByteTokenizer(), "chat").text(SUM)


def test_what_a_run_keeps_of_the_words():
    found = TEXT.described([SUM, SUM, BODY, WRITE])
    assert list(found) == ["number", "completion", "code"]
    assert found["number"]["prompt"] == "Question: {question}\nAnswer:"
    assert found["number"]["answer"] in KINDS["number"].__doc__
    assert asked(Item("{question}", "number")) in CHAT.described([SUM])["number"]["prompt"]
