"""Another kind of model is one entry of the registry and one family, with leaves of its own."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, safetensors_files, verify
from pangu_jax.checkpoint.hf.families import config_keys
from pangu_jax.checkpoint.hf.families.family import Family, linear
from pangu_jax.checkpoint.hf.families.registry import FAMILIES
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Spec, stack
from pangu_jax.core.tree import flatten
from pangu_jax.models import registry
from pangu_jax.models.registry import Kind

V, D, K, C, F, T, CLASSES = 11, 8, 2, 4, 6, 5, 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Two runs of encoder layers, as after pruning: the second run is half as wide inside."""

    vocab: int = V
    layers: tuple[int, ...] = (2, 1)


def spec(cfg):
    def leaf(*shape):
        return Spec(shape, (None,) * len(shape))

    def norm():
        return {"scale": leaf(D), "bias": leaf(D)}

    def layer(width):
        heads = {"kernel": leaf(D, K, 1, C), "bias": leaf(K, 1, C)}
        return {
            "attention": {
                "query": heads, "key": {"kernel": leaf(D, K, C), "bias": leaf(K, C)},
                "value": {"kernel": leaf(D, K, C), "bias": leaf(K, C)},
                "out": {"kernel": leaf(K, 1, C, D), "bias": leaf(D)},
            },
            "attention_norm": norm(),
            "mlp": {"up": {"kernel": leaf(D, width), "bias": leaf(width)},
                    "down": {"kernel": leaf(width, D), "bias": leaf(D)}},
            "mlp_norm": norm(),
        }  # fmt: skip

    return {
        "embed": {
            "word": {"table": leaf(cfg.vocab, D)},
            "position": {"table": leaf(T, D)},
            "type": {"table": leaf(2, D)},
            "norm": norm(),
        },
        "runs": [stack(layer(F // (1 + i)), n) for i, n in enumerate(cfg.layers)],
        "pooler": {"kernel": leaf(D, D), "bias": leaf(D)},
        "head": {"kernel": leaf(D, CLASSES), "bias": leaf(CLASSES)},
    }


def norm(leaf, tensor):
    return {f"{leaf}/scale": f"{tensor}.weight", f"{leaf}/bias": f"{tensor}.bias"}


LAYER = "bert.encoder.layer.{layer}"
OTHER = Family(
    "other",
    "OtherForScores",
    "other",
    {
        "embed/word/table": "bert.embeddings.word_embeddings.weight",
        "embed/position/table": "bert.embeddings.position_embeddings.weight",
        "embed/type/table": "bert.embeddings.token_type_embeddings.weight",
        **norm("embed/norm", "bert.embeddings.LayerNorm"),
        **linear("attention/query", f"{LAYER}.attention.self.query"),
        **linear("attention/key", f"{LAYER}.attention.self.key"),
        **linear("attention/value", f"{LAYER}.attention.self.value"),
        **linear("attention/out", f"{LAYER}.attention.output.dense"),
        **norm("attention_norm", f"{LAYER}.attention.output.LayerNorm"),
        **linear("mlp/up", f"{LAYER}.intermediate.dense"),
        **linear("mlp/down", f"{LAYER}.output.dense"),
        **norm("mlp_norm", f"{LAYER}.output.LayerNorm"),
        **linear("pooler", "bert.pooler.dense"),
        **linear("head", "classifier"),
    },
    read=lambda keys: Config(config_keys.read(keys, "vocab_size", int)),
    write=lambda cfg: {"vocab_size": cfg.vocab},
    skipped=(r"bert\.embeddings\.position_ids",),
    kind="other",
    prefix="bert.",
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(registry.KINDS, "other", Kind("other", Config, spec))
    monkeypatch.setitem(FAMILIES, "other", OTHER)


def files(folder, prefix):
    """A folder as transformers writes it: every matrix [outputs, inputs], every vector flat."""
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    folder.mkdir()
    keys = {"architectures": [OTHER.architecture], "vocab_size": V, "id2label": {"0": "no"}}
    (folder / "config.json").write_text(json.dumps(keys))
    (folder / "vocab.txt").write_text("[PAD]\n")
    ids = {"bert.embeddings.position_ids": np.arange(T, dtype=np.int64)}
    written = {n.replace("bert.", prefix, 1): x for n, x in (tensors | ids).items()}
    save_file(written, folder / "model.safetensors")
    return tensors


SHAPES = {
    "bert.embeddings.word_embeddings.weight": (V, D),
    "bert.embeddings.position_embeddings.weight": (T, D),
    "bert.embeddings.token_type_embeddings.weight": (2, D),
    "bert.embeddings.LayerNorm.weight": (D,),
    "bert.embeddings.LayerNorm.bias": (D,),
    "bert.pooler.dense.weight": (D, D),
    "bert.pooler.dense.bias": (D,),
    "classifier.weight": (CLASSES, D),
    "classifier.bias": (CLASSES,),
}
for i, width in enumerate((F, F, F // 2)):
    parts = {
        "attention.self.query": (K * C, D), "attention.self.key": (K * C, D),
        "attention.self.value": (K * C, D), "attention.output.dense": (D, K * C),
        "attention.output.LayerNorm": (D,), "intermediate.dense": (width, D),
        "output.dense": (D, width), "output.LayerNorm": (D,),
    }  # fmt: skip
    for part, shape in parts.items():
        SHAPES[f"bert.encoder.layer.{i}.{part}.weight"] = shape
        SHAPES[f"bert.encoder.layer.{i}.{part}.bias"] = shape[:1]


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_every_tensor_goes_to_its_leaf_and_back(prefix, tmp_path):
    want = files(tmp_path / "in", prefix)
    params, cfg = hf.load(tmp_path / "in")
    assert cfg == Config() and hf.read_config(tmp_path / "in") == (cfg, "other")
    got = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    np.testing.assert_array_equal(got["embed/type/table"], want[OTHER.tensors["embed/type/table"]])
    np.testing.assert_array_equal(got["head/kernel"], want["classifier.weight"].T)
    np.testing.assert_array_equal(got["pooler/bias"], want["bert.pooler.dense.bias"])
    last = "bert.encoder.layer.2"  # the first layer of the second run
    np.testing.assert_array_equal(
        got["runs/1/attention/query/kernel"][0].reshape(D, K * C),
        want[f"{last}.attention.self.query.weight"].T,
    )
    np.testing.assert_array_equal(
        got["runs/1/mlp_norm/bias"][0], want[f"{last}.output.LayerNorm.bias"]
    )
    hf.save(params, cfg, tmp_path / "out", family="other", source=tmp_path / "in")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == want.keys() and len(want) == len(SHAPES)
    for name, array in want.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    keys = json.loads((tmp_path / "out" / "config.json").read_text())
    assert keys["torch_dtype"] == "float32" and keys["id2label"] == {"0": "no"}
    assert (tmp_path / "out" / "vocab.txt").is_file()
    hf.save(*hf.view(tmp_path / "in"), tmp_path / "third", family="other")  # from file to file
    third = (tmp_path / "third" / safetensors_files.SINGLE).read_bytes()
    assert third == (tmp_path / "out" / safetensors_files.SINGLE).read_bytes()
    found = verify.check_structure(tmp_path / "in")
    assert found.startswith(f"{len(SHAPES) + 1} tensors in 1 file fit")


def test_a_family_of_another_kind_cannot_express_it(tmp_path):
    files(tmp_path / "in", "bert.")
    params, cfg = hf.load(tmp_path / "in")
    with pytest.raises(InputError, match="LlamaForCausalLM cannot express a model of kind other"):
        hf.save(params, cfg, tmp_path / "out", family="llama")
