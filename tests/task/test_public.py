"""`import pangu_jax as pj` as a user has it: light, and what docs/python.md says works."""

import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import pangu_jax as pj
from pangu_jax.checkpoint import hf
from pangu_jax.cli.main import main
from pangu_jax.task import language

ROOT = Path(__file__).parents[2]
DTYPE = "dtype must be one of float32, bfloat16"
LIGHT = """
import sys
before = set(sys.modules)
import pangu_jax
assert set(pangu_jax.__all__) <= set(dir(pangu_jax))
heavy = {name.split(".")[0] for name in set(sys.modules) - before}
assert heavy & set(sys.stdlib_module_names) | {"pangu_jax"} == heavy | {"pangu_jax"}, heavy
names = [n for n in sys.modules if n.startswith("pangu_jax")]
assert names == ["pangu_jax"], names
try:
    pangu_jax.nothing
except AttributeError as error:
    assert "'nothing'" in str(error)
found = [getattr(pangu_jax, name) for name in pangu_jax.__all__ if name != "prune"]
import pangu_jax.task.export
import jax._src.xla_bridge
assert not jax._src.xla_bridge.backends_are_initialized(), "a device was touched"
assert not {"torch", "matplotlib", "tyro"} & set(sys.modules)
pangu_jax.prune
assert "matplotlib.pyplot" not in sys.modules, "the notebook's own figures would change"
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("pangu_jax.")}
assert not {"cli", "serve"} & rooms and "tyro" not in sys.modules
"""


def test_importing_it_brings_nothing_along():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_name_of_a_room_stays_the_function_whatever_was_imported():
    import pangu_jax.export.artifact as inner

    assert callable(pj.export) and pj.export.artifact is inner
    assert all(callable(getattr(pj, name)) for name in pj.__all__)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run, encoder_folder):
    """A folder that holds what the page names."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "smollm2").symlink_to(tiny_run)
    (folder / "all-MiniLM-L6-v2").symlink_to(encoder_folder)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    rows = [
        f"2024-01-{1 + i // 24:02} {i % 24:02}:00,{np.sin(i / 4):.4f},{np.cos(i / 5):.4f}"
        for i in range(240)
    ]
    (folder / "load.csv").write_text("\n".join(["date,one,two", *rows]))
    return folder


@pytest.fixture(scope="module")
def page(place):
    """What the page's examples leave behind, run one after another."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def model(tiny_run):
    return pj.load(tiny_run)


def command(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.long
def test_the_page_s_examples_do_what_the_commands_do(page, place, capsys):
    assert page["m"].kind == "decoder" and len(page["texts"]) == 2
    prompt = "Once upon a time"
    words = ["--prompt", prompt, "--max-new-tokens", 20, "--temperature", 0.8]
    out = command(capsys, "generate", place / "smollm2", *words)
    assert out == f"{prompt}{page['texts'][0]}\n"  # alone as beside another
    options = ["--data", place / "text.txt", "--length", 64, "--json"]
    assert json.loads(command(capsys, "eval", place / "smollm2", *options)) == page["score"]
    assert page["small"].path == "small" and page["small"].kind == "decoder"
    assert (place / "small" / "report.md").is_file()
    assert [program.name for program in page["artifact"].programs] == ["prefill_16", "decode"]
    assert (place / "compiled" / "artifact.json").is_file()
    assert page["vectors"].shape == (2, 32) and page["vectors"].dtype == np.float32
    np.testing.assert_allclose(np.diag(page["similarity"]), 1, rtol=1e-5)
    assert page["found"]["values"].shape == (4, 2) and page["found"]["names"] == ["one", "two"]
    assert page["found"]["times"][0].startswith("2024-01-11 00:00")
    assert set(page["errors"]) == {"one", "two"}
    assert pj.evaluate(page["m"], [(place / "text.txt").read_text()], length=64) == page["score"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pj.generate(m, "a text"), "prompts must be a list of texts, got 'a text'"),
        (lambda m: pj.generate("smollm2", ["a"]), "need a model, as `pangu_jax.load` gives it"),
        (lambda m: pj.generate(m, ["a"], batch=0), "^batch must be at least 1, got 0$"),
        (lambda m: pj.generate(m, ["a"], dtype="float16"), f"^{DTYPE}, got 'float16'$"),
        (lambda m: pj.evaluate(m, ["a"], dtype="float16"), f"^{DTYPE}, got 'float16'$"),
        (lambda m: pj.embed(m, ["a"], pooling="last", dtype="fp16"), f"^{DTYPE}, got 'fp16'$"),
        (lambda m: pj.load(m.path, dtype="fp16"), f"^{DTYPE}, got 'fp16'$"),
        (lambda m: pj.embed(m, ["a"]), "make a vector .*; give the option pooling: cls"),
        (lambda m: pj.embed(m, "a", pooling="last"), "texts must be a list of texts, got 'a'"),
        (lambda m: pj.forecast(m, "load.csv"), "this takes the kind forecaster"),
        (lambda m: pj.prune(m, "out", target="params=0.8", method="best"), "method"),
        (lambda m: pj.prune(m, "out", target="params=0.8"), "^give calib: a file or folder"),
        (lambda m: pj.prune(m, "out", calib="stdlib"), "^give either a target .* or a plan$"),
        (
            lambda m: pj.prune(m, "out", target="ffn=0.5", calib="stdlib", allocation="cosine"),
            "allocation cosine makes uneven ones; take export padded or per-layer$",
        ),
        (lambda m: pj.export(m, "out", target="torch"), "target"),
        (lambda m: pj.export(m, "out", target="ascend"), "^target ascend needs soc, such as"),
        (lambda m: pj.export(m, "out", target="onnx", profiles=16), "^profiles is 16; it must be"),
        (lambda m: pj.export(m, "out", target="onnx", batch=0), "^batch must be at least 1, got 0"),
        (lambda m: pj.fit("load.csv", horizon=4, seeds=0), "seeds must be at least 1, got 0"),
        (lambda m: pj.load("nothing-here"), "nothing-here is no checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(model, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pj.InputError, match=message) as error:
        call(model)
    assert not re.search(r"--[a-z]", str(error.value))  # which is for the command line
    assert not any(tmp_path.iterdir())


def test_options_that_there_are_not_are_refused(model):
    for call in (pj.evaluate, pj.prune, partial(pj.export, target="onnx")):
        with pytest.raises(TypeError, match="lenght"):
            call(model, "x", lenght=3)


def test_a_model_without_a_tokenizer_opens_and_says_so():
    bare = pj.load(ROOT / "tests" / "golden" / "llama2")
    with pytest.raises(pj.InputError, match="has no tokenizer; give one to `load`"):
        pj.generate(bare, ["a"])


def test_a_gguf_file_opens_with_its_tokenizer_and_is_not_pruned(tmp_path):
    where = importlib.util.spec_from_file_location("make_gguf", ROOT / "tools" / "make_gguf.py")
    tool = importlib.util.module_from_spec(where)
    where.loader.exec_module(tool)
    tokens = [*map(chr, range(65, 91)), *map(chr, range(97, 116)), "ab", "<s>", "</s>"]
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [1] * 46 + [3, 3],
        "merges": ["a b"],
        "bos_token_id": 46,
        "eos_token_id": 47,
    }
    golden, file = ROOT / "tests" / "golden" / "llama2", tmp_path / "m.gguf"
    described = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    tool.write(golden, file, metadata=described)
    found = pj.load(file)
    assert found.cfg == hf.read_config(golden)[0]
    assert found.tokenizer.encode("abc") == [45, 28] and found.tokenizer.name == str(file)
    for call in (pj.prune, pj.export):
        with pytest.raises(pj.InputError, match="is a GGUF file; `pangu-jax convert"):
            call(found, tmp_path / "out", target="onnx")


class Pieces:
    """A tokenizer that, as SentencePiece does, leaves out the space that a text begins with."""

    eos_ids = (9,)

    def decode(self, ids):
        return "".join(f" w{i}" for i in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("prompt", "row", "text"),
    [([1, 2], [3, 9], " w3"), ([1, 2], [3, 4], " w3 w4"), ([], [3], "w3"), ([1], [9], "")],
)
def test_a_continuation_is_the_text_after_the_prompt(prompt, row, text):
    assert language._continuation(prompt, row, Pieces()) == text
