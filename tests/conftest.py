"""Eight virtual CPU devices for every test, and where real data lies."""

import gc
import importlib
import inspect
import os
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

# Before jax is imported anywhere. Tests spend their time compiling, and unoptimized code compiles
# faster; `.ci/run` sets PANGU_JAX_OPTIMIZED for parity, and on Python 3.12 for numerical functions,
# to test what users get.
os.environ["JAX_PLATFORMS"] = "cpu"
# There is a worker for every core, so a program is not split to be compiled on several.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + (
    ""
    if os.environ.get("PANGU_JAX_OPTIMIZED")
    else " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# XLA's older emitters compile a layer with its gradient in a fraction of the time; later than
# 0.10, jaxlib has none, and ends a process that is given their flag.
os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false" * (
    "level=0" in os.environ["XLA_FLAGS"] and version("jaxlib").startswith("0.10.")
)

import chex
import jax
import pytest

# Programs are compiled once for all workers, and kept for the next run. Not for the processes that
# tests start: some are killed while they write.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it are skipped without."""
    root = os.environ.get("PANGU_JAX_DATA")
    if not root:
        pytest.skip("PANGU_JAX_DATA is not set: there are no real data files")
    return Path(root) / "data"


@pytest.fixture(scope="session")
def golden_tool():
    """Modules of tools/ that make models with torch, by name; skipped where torch is not."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

    def load(name):
        sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    return load


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run folder with a byte model so small that it compiles in no time; not to be changed."""
    import jax.numpy as jnp
    import numpy as np

    from pangu_jax.checkpoint import store
    from pangu_jax.core.spec import is_spec
    from pangu_jax.models import decoder
    from pangu_jax.nn.attention import AttentionConfig
    from pangu_jax.nn.block import LayerConfig
    from pangu_jax.nn.mlp import MlpConfig

    layer = LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8))
    cfg = decoder.DecoderConfig(264, 8, (layer,), max_length=400)
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32),
        decoder.spec(cfg),
        is_leaf=is_spec,
    )
    store.save_model(cfg, folder)
    with store.Store(folder) as checkpoints:
        checkpoints.save(1, params, {"step": jnp.int32(1)})
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A folder as sentence-transformers has: a tiny BERT, its tokenizer, the mean at length 1.

    Texts are words of one letter, a to z, which are cut to 12 tokens. Not to be changed.
    """
    import json

    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("encoder")
    with np.load(Path(__file__).parent / "golden" / "bert.npz") as golden:
        prefix = "weights/bert."
        weights = {n.removeprefix(prefix): golden[n] for n in golden.files if prefix in n}
        keys = {**json.loads(str(golden["config"])), "architectures": ["BertModel"]}
    save_file(weights, folder / "model.safetensors")
    steps = ("Transformer", "Pooling", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{step}", "path": ""} for step in steps]
    modules[1]["path"] = "1_Pooling"
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "config.json": keys,
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(value))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inner.add_special_tokens(words[:4])
    inner.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def as_users() -> dict:
    """Options of the compiler that users have, for tests that measure times."""
    options = {"xla_backend_optimization_level": 3}
    if "fusion_emitters" in os.environ["XLA_FLAGS"]:
        options["xla_cpu_use_fusion_emitters"] = True
    return options


@pytest.fixture
def at_most(monkeypatch):
    """`at_most(n, module, name)`: from now on that function may be traced n times.

    What was compiled before the test is forgotten.
    """

    def limit(n, module, name):
        chex.clear_trace_counter()
        bare = inspect.unwrap(getattr(module, name))
        monkeypatch.setattr(module, name, chex.assert_max_traces(bare, n))

    jax.clear_caches()
    return limit


@pytest.fixture(autouse=True, scope="module")
def _forget_compilations():
    """Compiled functions of a finished module only take memory."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_collection_finish():
    """What was imported stays to the end: the garbage collector need not walk through it again."""
    gc.collect()
    gc.freeze()


# Tests with these markers run when they are asked for, by `-m parity` and the like.
ASKED = {
    "long": "takes long: run `make long`",
    "parity": "compares with torch: run `make parity`",
    "slow": "takes minutes: run `make slow`",
}


def pytest_collection_modifyitems(config, items):
    """Leaves out what was not asked for.

    `long(but=3)` leaves the first three cases of a test in.
    """
    asked, cases = config.getoption("-m") or "", Counter()
    for item in items:
        own = [marker for marker in ASKED if marker in item.keywords]
        if own == ["long"]:
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] <= item.get_closest_marker("long").kwargs.get("but", 0):
                continue
        if own and not any(marker in asked for marker in own):
            item.add_marker(pytest.mark.skip(reason=ASKED[own[-1]]))
