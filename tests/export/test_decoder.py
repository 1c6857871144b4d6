"""Decoders of every family, unequal layers and both forms of experts: ONNX beside jax's forward."""

import dataclasses
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.decode.generate import generate
from pangu_jax.export import decoder as export_decoder
from pangu_jax.export.ascend.profile import profile, violations
from pangu_jax.export.onnx.model import load_onnx
from pangu_jax.export.onnx.write import Session, export
from pangu_jax.models import decoder
from pangu_jax.models.presets import preset
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import How
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

pytestmark = pytest.mark.onnx
GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(p.name for p in GOLDEN.iterdir() if (p / "config.json").is_file())
ROOT = Path(__file__).parents[2]

_spec = importlib.util.spec_from_file_location("generate_onnx", ROOT / "tools" / "generate_onnx.py")


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * (0.3 if len(s.shape) > 2 else 1), s.dtype),
        decoder.spec(cfg),
        is_leaf=is_spec,
    )


# What pruning makes: every layer its own width, head count and number of experts.
PRUNED = decoder.DecoderConfig(
    97,
    24,
    (
        LayerConfig(AttentionConfig(2, 3, 8, query_bias=True), mlp=MlpConfig(40)),
        LayerConfig(AttentionConfig(1, 2, 8), mlp=MlpConfig(17, in_bias=True)),
        LayerConfig(
            AttentionConfig(3, 1, 4, qk_norm=True), mlp=MlpConfig(5), norm_place="sandwich"
        ),
        LayerConfig(AttentionConfig(2, 1, 8), moe=MoEConfig(6, 3, 1, 7, shared_width=4)),
        LayerConfig(AttentionConfig(2, 1, 8), moe=MoEConfig(6, 3, 1, 7, shared_width=4)),
        LayerConfig(AttentionConfig(1, 1, 2), moe=MoEConfig(4, 1, 2, 3, router_scale=True)),
    ),
    tied=True,
    max_length=64,
)


@dataclasses.dataclass
class Exported:
    folder: Path
    rows: list
    lowered: dict


def exported(params, cfg, folder, *, experts="dense", batch=2, more=None, **options):
    options = {"profiles": (9,), "slots": 24, **options}
    bundle = export_decoder.bundle(
        params,
        cfg,
        batch=batch,
        how=How(impl={"attention": "reference", "expert_mlp": experts}),
        **options,
    )
    bundle = dataclasses.replace(bundle, facts={**bundle.facts, **(more or {})})
    _, rows, lowered = export(bundle, folder)
    return Exported(folder, rows, lowered)


def by_graphs(folder, prompts, new, lengths=(9,)):
    """Greedy ids of every row, as the graphs make them, and the logits on the way."""
    length = next(n for n in lengths if n >= max(map(len, prompts)))
    tokens = np.full((len(prompts), length), 3, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    position = np.array([len(p) for p in prompts], np.int32)
    state = Session(folder / f"prefill_{length}.onnx")({"tokens": tokens, "length": position})
    decode, ids, logits = Session(folder / "decode.onnx"), [], []
    for _ in range(new):
        logits.append(state.pop("logits"))
        ids.append(logits[-1].argmax(-1).astype(np.int32))
        given = {f"past_{n}": x for n, x in state.items()}
        state = decode({"token": ids[-1], "position": position, **given})
        position = position + 1
    return np.stack(ids, 1), np.stack(logits, 1)


def by_apply(params, cfg, prompts, ids):
    """Logits of one plain causal pass over each prompt and what was made after it."""
    rows = [[*prompt, *made[:-1]] for prompt, made in zip(prompts, ids, strict=True)]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    # The plain implementations, and little optimization: compiling is what takes the time here.
    how = How(impl={"attention": "reference", "expert_mlp": "reference"})
    forward = jax.jit(
        lambda p, t: decoder.logits(p, decoder.apply(p, t, cfg=cfg, how=how).hidden, cfg=cfg),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    found = np.asarray(forward(params, tokens))
    ends = [slice(len(p) - 1, len(r)) for p, r in zip(prompts, rows, strict=True)]
    return np.stack([row[end] for row, end in zip(found, ends, strict=True)])


def check_model(params, cfg, folder, *, experts="dense"):
    made = exported(params, cfg, folder, experts=experts)
    assert len(made.rows) == 6  # logits, keys and values of prefill and decode
    assert max(row.relative for row in made.rows) <= 2e-5
    prompts = [[5, 17, 2, 9, 30, 8, 1], [4, 11, 23]]
    ids, logits = by_graphs(folder, prompts, 12)
    wanted = by_apply(params, cfg, prompts, ids)
    assert np.abs(logits - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert ids.tolist() == wanted.argmax(-1).tolist()
    for name, lowered in made.lowered.items():
        assert not violations(name, lowered.graph.nodes, profile("cann-8.0"))
        assert not {"Loop", "Scan", "Gelu", "Einsum", "ScatterND", "If"} & {*lowered.operators}
    return made


# Llama's layers are among those of the others, and experts in one tensor are read as the rest are.
SLOW = {"llama2", "llama3", "mistral", "qwen3_moe_fused"}


@pytest.mark.long(but=1)
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES]
)
def test_every_family_generates_the_same_tokens(family, tmp_path):
    params, cfg, _ = open_checkpoint(GOLDEN / family, dtype="float32")
    check_model(params, cfg, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("experts", ["dense", "gather"])
def test_unequal_layers_as_pruning_makes_them(experts, tmp_path):
    made = check_model(random_params(PRUNED), PRUNED, tmp_path, experts=experts)
    assert made.lowered["decode"].inputs["past_key_2"].shape == (2, 24, 3, 4)


@pytest.mark.long
def test_grouped_experts_as_gather(tmp_path):
    cfg = preset("moge-tiny", vocab=40)
    made = check_model(random_params(cfg), cfg, tmp_path, experts="gather")
    # Reads the chosen experts alone: choices of TopK are known to lie inside, nothing is clipped.
    assert made.lowered["decode"].operators["TopK"] == 3


def test_files_are_opset_17_with_named_weights_stored_once(tmp_path):
    onnx = load_onnx()
    params, cfg, _ = open_checkpoint(GOLDEN / "llama3", dtype="float32")
    tied = dataclasses.replace(cfg, tied=True)
    params = {name: branch for name, branch in params.items() if name != "head"}
    exported(params, tied, tmp_path, profiles=(4, 9))
    count = sum(x.nbytes for x in jax.tree.leaves(params))
    # Once: not twice, and not once a program; the rest is what aligns each tensor.
    assert count <= (tmp_path / "weights.bin").stat().st_size <= 1.1 * count
    models = [onnx.load(str(p), load_external_data=False) for p in sorted(tmp_path.glob("*.onnx"))]
    assert len(models) == 3  # two prefills and the step
    for model in models:
        assert model.ir_version == 8
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        names = {t.name for t in model.graph.initializer}
        assert {"embed/table", "layers/0/mlp/gate/kernel", "layers/1/attention/out/kernel"} <= names
        assert all("/" not in n.output[0] for n in model.graph.node)
        assert any(
            n.doc_string.startswith("dot_general at pangu_jax/nn/") for n in model.graph.node
        )
        # What was inferred strictly is what we say it is.
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_a_single_program_keeps_its_weights_inside_unless_asked(tmp_path):
    params, cfg, _ = open_checkpoint(GOLDEN / "llama2", dtype="float32")
    bundle = export_decoder.bundle(params, cfg, profiles=(4,), slots=8)
    one = dataclasses.replace(bundle, programs=bundle.programs[:1])
    for external, files in ((None, False), (True, True)):
        folder = tmp_path / str(external)
        folder.mkdir()
        export(one, folder, external=external)
        assert (folder / "weights.bin").exists() == files
        assert Session(folder / "prefill_4.onnx")(one.programs[0].samples["random"])["logits"].any()


@pytest.mark.long
def test_half_precision_checkpoints_are_exported_in_float32(tmp_path):
    params, cfg, _ = open_checkpoint(GOLDEN / "qwen2", dtype="bfloat16")
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    made = exported(wide, cfg, tmp_path)
    assert max(row.relative for row in made.rows) <= 2e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"profiles": ()}, "at least one profile"),
        ({"profiles": (0,)}, "profile 0 is outside 1 to"),
        ({"profiles": (8, 10**6)}, "profile 1000000 is outside 1 to"),
        ({"profiles": (16,), "slots": 8}, "cache of 8 slots is too short for the profile 16"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, said):
    params, cfg, _ = open_checkpoint(GOLDEN / "llama2")
    with pytest.raises(InputError, match=said):
        export_decoder.bundle(params, cfg, **options)


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "pangu_jax", "flax"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Refuse())
sys.argv = {arguments!r}
exec(compile(open({path!r}).read(), {path!r}, "exec"), {{"__name__": "__main__"}})
assert "jax" not in sys.modules
"""


def without_jax(*arguments, status=0):
    path = str(ROOT / "tools" / "generate_onnx.py")
    code = BLOCKED.format(arguments=[path, *map(str, arguments)], path=path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.mark.long
def test_onnxruntime_alone_generates_what_jax_does(tmp_path):
    params, cfg, _ = open_checkpoint(GOLDEN / "pangu_pro_moe", dtype="float32")
    exported(params, cfg, tmp_path, batch=1)
    prompt = [5, 17, 2, 9, 30]
    out = without_jax(
        tmp_path, " ".join(map(str, prompt)), "--ids", "--max-new-tokens", 15, "--stop", 0
    )
    wanted = generate(params, [prompt], cfg=cfg, max_new_tokens=15, stop_ids=[0]).rows()[0]
    assert [int(word) for word in out.split()] == wanted


@pytest.mark.long
def test_the_ids_that_begin_and_end_a_text_travel_with_the_export(tmp_path):
    params, cfg, _ = open_checkpoint(GOLDEN / "llama2", dtype="float32")
    facts = {"begin": (7,), "empty": (7,), "stop": ()}
    exported(params, cfg, tmp_path, batch=1, more=facts)
    vocab = {"<s>": 0, **{f"w{i}": i for i in range(1, cfg.vocab)}}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    wanted = generate(params, [[7, 5, 17]], cfg=cfg, max_new_tokens=6).rows()[0]
    words = " ".join(f"w{i}" for i in (5, 17, *wanted)) + "\n"
    assert without_jax(tmp_path, "w5 w17", "--max-new-tokens", 6) == words.replace("w0", "<s>")
    stopped = without_jax(tmp_path, "w5 w17", "--max-new-tokens", 6, "--stop", wanted[1])
    kept = wanted[: wanted.index(wanted[1]) + 1]
    assert stopped == " ".join(f"w{i}" for i in (5, 17, *kept)) + "\n"
    said = without_jax(tmp_path, "w5 " * 60, status=2)
    assert "the prompt has 61 tokens; the export takes 1 to 9, which --profiles of" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("stop, told", [((), True), ((2,), False)])
def test_an_answer_that_a_full_cache_cuts_is_told(capsys, stop, told):
    tool = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(tool)
    model = types.SimpleNamespace(slots=24, generate=lambda *_: iter([1, 2]))
    assert tool._answer(model, [7], 5, stop) == tool._answer(model, [7], 2, ()) == [1, 2]
    said = capsys.readouterr().err
    assert ("cut after 2 tokens: the cache of 24 slots is full" in said) == told
    assert said.count("\n") == told


@pytest.mark.long
def test_a_real_model_tells_the_same_story(tmp_path, data_dir):
    model = tmp_path / "model"
    files = [data_dir / "tiny_llama" / name for name in ("stories260K.bin", "tok512.bin")]
    tool = [sys.executable, ROOT / "tools" / "convert_llama2c.py", *files, model]
    subprocess.run([str(word) for word in tool], check=True, capture_output=True)
    params, cfg, _ = open_checkpoint(model)
    folder = tmp_path / "out"
    folder.mkdir()
    exported(params, cfg, folder, batch=1, profiles=(16,), slots=128)
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    ids = ["--bos", 1, "--stop", 1, 2]
    text = without_jax(folder, "Once upon a time", "--max-new-tokens", 60, *ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )
    from pangu_jax.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    prompt = [tokenizer.boundary, *tokenizer.encode("Once upon a time")]
    wanted = generate(
        params, [prompt], cfg=cfg, max_new_tokens=60, stop_ids=tokenizer.eos_ids
    ).rows()[0]
    assert text.strip() == tokenizer.decode([*prompt[1:], *wanted]).strip()
