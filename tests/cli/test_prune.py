"""`pangu-jax prune`, `prune check` and `distill` as a user meets them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.main import main
from pangu_jax.core.run_folder import Claim
from pangu_jax.core.spec import is_spec
from pangu_jax.models import decoder
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.pruning import plan

LAYER = LayerConfig(AttentionConfig(4, 1, 4), mlp=MlpConfig(24))
CFG = decoder.DecoderConfig(264, 16, (LAYER,) * 2, max_length=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    words = ["stone", "river", "green", "sky", "under", "cold", "bird"]
    path.write_text(" ".join(rng.choice(words, 400)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run folder of ours: random weights."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda spec: jnp.asarray(rng.normal(size=spec.shape) * 0.3, jnp.float32),
        decoder.spec(CFG),
        is_leaf=is_spec,
    )
    store.save_model(CFG, folder)
    with store.Store(folder) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    return folder


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


SMALL = ["--windows", 8, "--length", 32, "--batch", 4, "--eval-windows", 8]


@pytest.fixture(scope="module")
def out(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "out"
    options = ["--target", "params=0.8", "--calib", text, *SMALL]
    assert call("prune", model, folder, *options) == 0
    return folder


@pytest.mark.long
def test_it_writes_a_smaller_checkpoint_a_plan_and_a_report(model, out, capsys):
    params, cfg = hf.load(out)
    assert len(set(cfg.layers)) == 1
    assert (cfg.layers[0].mlp.width, cfg.layers[0].attention.kv_heads) != (24, 4)
    report = (out / "report.md").read_text()
    for part in ("parameters", "KV cache bytes", "perplexity", "0/heads", "1/channels", "windows"):
        assert part in report, part
    assert (out / "plots" / "ratios.png").stat().st_size > 1000
    made = plan.load(out / "plan.json")
    assert made.model_hash == plan.digest(open_checkpoint(model)[0])
    assert len(made.text_hash) == 16
    assert len(made.scores[0].channels) == 24
    assert call("prune", "check", out, "--source", model) == 0
    modes = {path.stat().st_mode for path in out.iterdir() if path.is_file()}
    assert modes == {(out / "report.md").stat().st_mode}  # a library makes its own files private
    said = capsys.readouterr().out
    for part in ("all values finite", "as recorded", "bit for bit"):
        assert part in said


@pytest.mark.long
def test_a_plan_is_replayed_to_the_same_bits(model, out, text, tmp_path, capsys):
    again = tmp_path / "again"
    options = ["--plan", out / "plan.json", "--calib", text, *SMALL]
    assert call("prune", model, again, *options) == 0
    a, b = hf.load(out)[0], hf.load(again)[0]
    assert plan.digest(a) == plan.digest(b)
    # Without a repair no text is needed.
    bare = tmp_path / "bare"
    assert call("prune", model, bare, "--plan", out / "plan.json", "--repair", "none") == 0
    assert call("prune", "check", bare, "--source", model) == 0
    short = ["--windows", 4, "--length", 32]
    options = ["--plan", out / "plan.json", "--calib", text, *short]
    assert call("prune", model, tmp_path / "no", *options) == 2
    assert "other calibration windows" in capsys.readouterr().err


def test_a_folder_that_another_process_fills_is_refused_at_once(model, text, tmp_path, capsys):
    with Claim(tmp_path / "out"):
        assert call("prune", model, tmp_path / "out", "--target", "ffn=0.5", "--calib", text) == 2
        assert "another process is pruning into" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert call("prune", tmp_path / "none", tmp_path / "out", "--target", "ffn=0.5") == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.long
def test_check_finds_what_was_changed(model, out, tmp_path, capsys):
    params, cfg = hf.load(out)
    leaf = params["runs"][0]["mlp"]["gate"]
    leaf["kernel"] = leaf["kernel"].at[0, 0, 0].add(1.0)
    bad = tmp_path / "bad"
    hf.save(params, cfg, bad, family="llama", source=out)
    for name in ("plan.json", "check.safetensors"):
        (bad / name).write_bytes((out / name).read_bytes())
    assert call("prune", "check", bad) == 2
    assert "differ from the recorded" in capsys.readouterr().err
    (bad / "check.safetensors").write_bytes(b"")
    assert call("prune", "check", bad) == 2
    assert "check.safetensors is missing or damaged" in capsys.readouterr().err


@pytest.mark.long
def test_a_student_is_distilled_and_written(model, out, text, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--data", text, "--out", run, "--steps", 3, "--batch", 2, "--length", 32]
    assert call("distill", model, out, *options, "--hidden-weight", 0.1) == 0
    before, after = hf.load(out)[0], hf.load(run / "model")[0]
    assert plan.digest(before) != plan.digest(after)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "nats", "kl", "hidden"} <= lines[0].keys()
    total = lines[0]["nats"] + lines[0]["kl"] + 0.1 * lines[0]["hidden"]
    assert lines[0]["loss"] == pytest.approx(total, rel=1e-5)
    capsys.readouterr()
    assert call("eval", run, "--data", text) == 2
    assert f"distill`, whose model is {run / 'model'}; give that" in capsys.readouterr().err
    assert call("distill", model, out, *options) == 2
    assert "another hidden_weight" in capsys.readouterr().err


@pytest.mark.long
def test_what_is_wrong_is_said_in_one_sentence(model, out, text, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    new = tmp_path / "new"
    base = ["--calib", text, *SMALL]
    other = tmp_path / "plan.json"
    other.write_text((out / "plan.json").read_text().replace('"width": 16', '"width": 17'))
    hashed = tmp_path / "hashed.json"
    found = json.loads((out / "plan.json").read_text())
    hashed.write_text(json.dumps({**found, "model_hash": "0" * 16}))
    moe = tmp_path / "moe"
    moe.mkdir()
    (moe / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    for arguments, message in (
        ([model, new, "--target", "params=0.05", *base], "cannot be met"),
        ([model, new, "--target", "params=2", *base], "(0, 1]"),
        (
            [model, new, "--target", "params=0.8", "--calib", short, *SMALL],
            "do not fill one window",
        ),
        (
            [model, new, "--target", "params=0.8", "--calib", text, "--windows", 999],
            "999 are asked",
        ),
        ([model, new, "--target", "params=0.8"], "give calib"),
        ([model, new, *base], "either a target"),
        ([model, tmp_path / "used", "--target", "params=0.8", *base], "not empty"),
        ([model, new, "--plan", hashed, *base], "another checkpoint"),
        ([model, new, "--plan", other, *base], "width 17"),
        ([moe, new, "--target", "params=0.8", *base], "GPT2LMHeadModel is not known"),
        (
            [model, new, "--target", "params=0.8", *base, "--allocation", "cosine"],
            "allocation cosine makes uneven",
        ),
        ([tmp_path / "nothing", new, "--target", "params=0.8", *base], "no checkpoint"),
        (["check", tmp_path / "nothing"], "cannot read"),
    ):
        assert call("prune", *arguments) == 2, message
        err = capsys.readouterr().err.strip().splitlines()
        assert message in err[-1], (message, err)
        assert err[-1].startswith("pangu-jax: ")
        assert not new.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_weights_that_are_no_numbers_and_tokens_that_do_not_fit(model, text, tmp_path, capsys):
    params, cfg, _ = open_checkpoint(model)
    hf.save(params, cfg, tmp_path / "nan", family="llama")
    tensors = load_file(tmp_path / "nan" / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    options = ["--target", "params=0.8", "--calib", text, "--tokenizer", "bytes", *SMALL]
    assert call("prune", tmp_path / "nan", tmp_path / "new", *options) == 2
    assert "model.norm.weight holds NaN" in capsys.readouterr().err
    small = decoder.DecoderConfig(100, 16, (LAYER,), max_length=64)
    tree = jax.tree.map(lambda s: jnp.ones(s.shape), decoder.spec(small), is_leaf=is_spec)
    hf.save(tree, small, tmp_path / "small", family="llama")
    assert call("prune", tmp_path / "small", tmp_path / "new", *options) == 2
    assert (
        "gives 'boundary' the id 256, the model's vocabulary ends at 99" in capsys.readouterr().err
    )
    assert not (tmp_path / "new").exists()


def test_check_is_a_command_with_help_of_its_own(tmp_path, capsys):
    assert call("prune", "check", "--help") == 0
    said = capsys.readouterr().out
    assert "usage: pangu-jax prune check" in said and "--source" in said and "--calib" not in said
    assert call("prune", "check") == call("prune", "check", tmp_path, "--target", "ffn=0.5") == 2
    capsys.readouterr()
    assert call("prune", "check", tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("pangu-jax: ") and str(tmp_path) in err
    assert call("prune", tmp_path, tmp_path / "out", "--source", tmp_path) == 2  # check's alone
