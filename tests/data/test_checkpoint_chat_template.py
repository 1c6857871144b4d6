"""A checkpoint's own chat template: read where it stands, and kept from doing harm."""

import json
import time

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data import checkpoint_chat_template
from pangu_jax.data.chat import render
from pangu_jax.data.checkpoint_chat_template import find_template, load_template
from pangu_jax.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
SAID = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi"}]
PLAIN = (
    "{{ bos_token }}{% for m in messages %}\n    [{{ m.role }}] {{ m['content'] | trim }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}[assistant]{% endif %}"
)
WANT = "<s>    [system] Be <brief>.\n    [user] Hi\n[assistant]"


def write(folder, source, where="chat_template.jinja"):
    if where == "chat_template.jinja":
        (folder / where).write_text(source)
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    else:
        keys = {"bos_token": {"content": "<s>"}, "chat_template": source}
        (folder / where).write_text(json.dumps(keys))


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_it_is_found_and_gives_the_text_with_its_begin(where, tmp_path):
    write(tmp_path, PLAIN, where)
    assert render(SAID, load_template(tmp_path, BYTES)) == WANT
    assert render(SAID, find_template(tmp_path, BYTES)) == WANT


def test_of_several_the_default_is_taken(tmp_path):
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": PLAIN}]
    write(tmp_path, several, "tokenizer_config.json")
    assert render(SAID, load_template(tmp_path, BYTES)) == WANT


def test_without_one_a_known_template_must_fit(tmp_path):
    assert load_template(tmp_path, BYTES) is None
    with pytest.raises(InputError, match="name one of pangu, llama3, chatml"):
        find_template(tmp_path, BYTES)


def test_what_it_writes_decides_modes_and_stops(tmp_path):
    write(tmp_path, "{% for m in messages %}{{ m.content }}[unused10]{% endfor %}")
    template = load_template(tmp_path, BYTES)
    assert template.stops == ("[unused10]",)
    assert render(SAID, template, mode="fast") == "Be <brief>.[unused10]Hi /no_think[unused10]"


def test_it_finds_what_public_templates_use(tmp_path):
    write(tmp_path, "{{ messages[1] | tojson }}{% for i in range(9) %}{% break %}{% endfor %}")
    assert render(SAID, load_template(tmp_path, BYTES)) == json.dumps(SAID[1])
    write(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="cannot write this dialogue: roles must alternate"):
        render(SAID, load_template(tmp_path, BYTES))


HARM = {
    "insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['datetime'] }}",
    "attr": "{{ messages | attr('__class__') }}{{ (messages|attr('__class__')).__mro__ }}",
    "change": "{{ messages.append(1) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}{{ ''.__class__.__mro__ }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "memory": "{{ 'x' * 10 ** 10 }}",
    "product": "{{ ('x' * 999999) * 999999 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "compiling": "{% if false %}{{ 9 ** (9 ** 9) }}{% endif %}",
    "products": "{% set x = namespace(n=9) %}{% for i in range(99) %}{% set x.n = x.n * x.n %}"
    "{% endfor %}",
    "round": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "formatting": "{{ '%1000000000d' % 1 }}",
    "center": "{{ 'x'.center(10 ** 10) }}{{ 'x' | center(10 ** 10) }}",
    "zeros": "{{ 'x'.zfill(10 ** 10) }}",
    "indent": "{{ 'x\n' | indent(10 ** 10, true) }}",
    "doubling": "{% set x = namespace(s='xx') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}"
    "{% endfor %}",
    "much": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "digits": "{{ %s }}" % ("9" * 5000),
    "nested": "{% for a in messages %}" * 25 + "{% endfor %}" * 25,
    "deep": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "forever": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "undefined": "{{ messages[0].nothing.at_all }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    """About a second of the processor."""
    monkeypatch.setattr(checkpoint_chat_template, "SECONDS", 0)


@pytest.mark.long(but=9)
@pytest.mark.parametrize("kind", HARM)
def test_what_would_do_harm_is_stopped_with_a_sentence(kind, tmp_path):
    write(tmp_path, HARM[kind])
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"chat_template\.jinja (ran|tried|cannot|is not)") as said:
        render(SAID, load_template(tmp_path, BYTES))
    assert "\n" not in str(said.value) and len(str(said.value)) < 1000
    assert time.monotonic() - begin < 20
    assert SAID[1] == {"role": "user", "content": "Hi"}


def test_a_process_that_was_stopped_is_begun_anew(tmp_path):
    write(tmp_path, "{% if messages[0].content == 'x' %}" + HARM["forever"] + "{% endif %}ok")
    template = load_template(tmp_path, BYTES)
    for _ in range(2):
        with pytest.raises(InputError, match="ran for too long"):
            render([{"role": "user", "content": "x"}], template)
        assert render(SAID, template) == render(SAID, template) == "ok"


def test_it_finds_what_transformers_defines(tmp_path):
    source = (
        "{% generation %}{% set a = 1 %}{{ messages[1].content }}{% endgeneration %}{{ a }}"
        "{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ pad_token is defined }}"
        "{{ mask_token }}{{ {'b': 1, 'a': '<'} | tojson(sort_keys=true, separators=(',', ':')) }}"
        "{{ strftime_now('%%') }}{% if tools is not none %}tools{% endif %}"
    )
    write(tmp_path, source)
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": {"content": "<m>"}}')
    want = 'HiTrueTrue<s>False<m>{"a":"<","b":1}%'
    assert render(SAID, load_template(tmp_path, BYTES)) == want


def test_thinking_tags_are_tokens_or_stand_in_the_template(tmp_path):
    write(tmp_path, "{% if add_generation_prompt %}<think>\n{% endif %}")
    assert load_template(tmp_path, BYTES).thinking == ("<think>", "</think>")
    write(tmp_path, "plain")
    assert load_template(tmp_path, BYTES).thinking is None


def test_in_a_run_of_ours_the_tokenizer_begins_a_dialogue_too(tmp_path):
    write(tmp_path, "plain")
    assert load_template(tmp_path, BYTES).whole
    (tmp_path / "model.json").write_text("{}")
    assert not load_template(tmp_path, BYTES).whole


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("chat_template.jinja", b"{% for %}", "is not a chat template"),
        ("chat_template.jinja", b"{{ x", "is not a chat template"),
        ("chat_template.jinja", b"\xff", "cannot read"),
        ("tokenizer_config.json", b"[]", "holds no JSON object"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "must be a text, got 3"),
    ],
)
def test_what_is_no_template_is_refused(name, raw, words, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=words):
        load_template(tmp_path, BYTES)
