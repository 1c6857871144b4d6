"""BERT's checkpoints: torch's results from its tensors, both ways, and what is refused by name."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf
from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.models import encoder

GOLDEN = Path(__file__).parents[2] / "golden" / "bert.npz"
PREFIX = "weights/"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def classifier(golden, tmp_path_factory):
    """A folder with the tensors of BertForSequenceClassification, and a buffer of older files."""
    folder = tmp_path_factory.mktemp("classifier")
    weights = {n.removeprefix(PREFIX): golden[n] for n in golden if n.startswith(PREFIX)}
    weights["bert.embeddings.position_ids"] = np.arange(24)[None]
    save_file(weights, folder / "model.safetensors")
    keys = json.loads(str(golden["config"]))
    keys["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def changed(folder, out, values, name="config.json"):
    """A copy of a folder with keys of one of its files changed."""
    shutil.copytree(folder, out)
    path = out / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values} if isinstance(values, dict) else values))
    return out


def test_the_numbers_are_torchs(golden, classifier):
    params, cfg = hf.load(classifier, dtype=jnp.float32)
    assert hf.read_config(classifier) == (cfg, "bert-classifier")
    assert cfg.classes == 3 and cfg.pooler and cfg.pooling is None

    @jax.jit
    def run(params, tokens, valid, types):
        hidden = encoder.apply(params, tokens, valid, cfg=cfg, token_types=types).hidden
        return hidden, encoder.scores(params, hidden, valid)

    valid = golden["valid"] > 0
    hidden, scores = run(params, golden["tokens"], valid, golden["token_types"])
    assert np.abs(np.asarray(hidden) - golden["hidden"])[valid].max() <= 1e-5
    assert np.abs(np.asarray(scores) - golden["scores"]).max() <= 1e-5
    wrong = run(params, golden["tokens"], valid, 1 - golden["token_types"])
    assert np.abs(np.asarray(wrong[1]) - golden["scores"]).max() > 1e-2


@pytest.mark.parametrize("labels", [{"num_labels": 1}, {"id2label": {"0": "LABEL_0"}}])
def test_a_reranker_gives_torchs_score(labels, tmp_path):
    """A cross-encoder of sentence-transformers: one label, and what that library adds."""
    with np.load(GOLDEN.parent / "reranker.npz") as arrays:
        golden = dict(arrays)
    weights = {n.removeprefix(PREFIX): golden[n] for n in golden if n.startswith(PREFIX)}
    save_file(weights, tmp_path / "model.safetensors")
    keys = json.loads(str(golden["config"]))
    keys = {name: x for name, x in keys.items() if name not in ("id2label", "label2id")}
    own = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    keys |= {"architectures": ["BertForSequenceClassification"], **labels, **own}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    params, cfg = hf.load(tmp_path, dtype=jnp.float32)
    assert cfg.classes == 1
    if "id2label" in labels:
        return  # the same model, by another key
    given = (golden["tokens"], golden["valid"] > 0)
    run = jax.jit(partial(encoder.classify, cfg=cfg))
    scores = run(params, *given, token_types=golden["token_types"])
    assert scores.shape == (3, 1) and np.abs(scores - golden["scores"]).max() <= 1e-5
    hf.save(params, cfg, tmp_path / "out", family="bert-classifier", source=tmp_path)
    assert hf.read_config(tmp_path / "out")[0] == cfg


def test_a_prefix_may_be_there_or_not(classifier, encoder_folder, tmp_path):
    """As in bare models that were saved from one with a head, and the other way round."""
    want = flatten(hf.load(encoder_folder)[0])
    bare = load_file(encoder_folder / "model.safetensors")
    prefixed = tmp_path / "prefixed"
    shutil.copytree(encoder_folder, prefixed)
    save_file({f"bert.{n}": x for n, x in bare.items()}, prefixed / "model.safetensors")
    for name, x in flatten(hf.load(prefixed)[0]).items():
        np.testing.assert_array_equal(x, want[name])
    both = {**bare, "bert.embeddings.LayerNorm.bias": bare["embeddings.LayerNorm.bias"]}
    save_file(both, prefixed / "model.safetensors")
    with pytest.raises(InputError, match=r"LayerNorm\.bias is there both with and without bert\."):
        hf.load(prefixed)
    unprefixed = tmp_path / "unprefixed"
    shutil.copytree(classifier, unprefixed)
    weights = load_file(classifier / "model.safetensors")
    weights = {name.removeprefix("bert."): x for name, x in weights.items()}
    save_file(weights, unprefixed / "model.safetensors")
    assert hf.load(unprefixed)[1].classes == 3


def test_a_pooler_is_there_where_its_tensors_are(encoder_folder, tmp_path):
    assert hf.load(encoder_folder)[1].pooler
    shutil.copytree(encoder_folder, tmp_path / "bare")
    weights = load_file(encoder_folder / "model.safetensors")
    kept = {name: x for name, x in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "bare" / "model.safetensors")
    params, cfg = hf.load(tmp_path / "bare")
    assert not cfg.pooler and "pooler" not in params
    hf.save(params, cfg, tmp_path / "again", family="bert")
    assert hf.load(tmp_path / "again")[1] == cfg
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == kept.keys()


@pytest.mark.parametrize("with_source", [True, False])
def test_what_is_written_is_what_was_read(with_source, classifier, encoder_folder, tmp_path):
    for family, folder in (("bert-classifier", classifier), ("bert", encoder_folder)):
        params, cfg = hf.load(folder)
        out, source = tmp_path / family, folder if with_source else None
        hf.save(params, cfg, out, family=family, source=source)
        again, found = hf.load(out)
        assert found == cfg
        jax.tree.map(np.testing.assert_array_equal, again, params)
        skipped = {"bert.embeddings.position_ids"}
        names = load_file(folder / "model.safetensors").keys() - skipped
        assert load_file(out / "model.safetensors").keys() == names
    assert cfg.pooling == "mean" and cfg.normalize and cfg.text_length == 12


def test_another_pooling_and_prefix_are_written_too(encoder_folder, tmp_path):
    params, cfg = hf.load(encoder_folder)
    for pooling in ("cls", "mean", "weighted", "last", "max"):
        asked = dataclasses.replace(cfg, pooling=pooling, normalize=False, prefix="q: ")
        hf.save(params, asked, tmp_path / pooling, family="bert", source=encoder_folder)
        assert hf.read_config(tmp_path / pooling)[0] == asked
    prompts = {"prompts": {"q": "q: "}, "default_prompt_name": "q"}
    source = changed(encoder_folder, tmp_path / "s", prompts, "config_sentence_transformers.json")
    with pytest.raises(
        InputError, match="cannot be written beside the source's files: prefix = ''"
    ):
        hf.save(params, cfg, tmp_path / "stale", family="bert", source=source)
    assert not (tmp_path / "stale").exists()
    silent = dataclasses.replace(cfg, pooling=None, normalize=False, text_length=None)
    hf.save(params, silent, tmp_path / "silent", family="bert")
    assert not (tmp_path / "silent" / "modules.json").exists()
    with pytest.raises(InputError, match="Classification cannot express classes = 0"):
        hf.save(params, cfg, tmp_path / "unscored", family="bert-classifier")
    with pytest.raises(InputError, match="a BertModel cannot express classes = 2"):
        scored = dataclasses.replace(cfg, classes=2)
        whole = {**params, "classifier": {"kernel": np.zeros((32, 2), np.float32),
                                          "bias": np.zeros(2, np.float32)}}  # fmt: skip
        hf.save(whole, scored, tmp_path / "scored", family="bert")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; known: gelu, gelu_new"),
        ({"hidden_act": {"a": 1}}, r"hidden_act \{'a': 1\} is not supported"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 must divide hidden_size 32"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 must divide"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps must be a number"),
        ({"max_position_embeddings": 0}, "encoder max_length must be at least 1"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is .* which is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"num_labels": 2}, "num_labels is 2, id2label names 3"),
        ({"num_labels": 0, "id2label": None}, "num_labels must be at least 1"),
        ({"id2label": 3}, "id2label must be an object"),
    ],
)
def test_what_the_encoder_does_not_have_is_refused_by_its_key(values, said, classifier, tmp_path):
    folder = changed(classifier, tmp_path / "changed", values)
    with pytest.raises(InputError, match=rf"config\.json: .*{said}"):
        hf.read_config(folder)


def module(kind, path=""):
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


MEAN = {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("modules.json", [module("Transformer"), module("Pooling"), module("Dense")],
         "has the module sentence_transformers.models.Dense, which is not supported"),
        ("modules.json", [module("Pooling"), module("Transformer")], "modules Pooling, Transf"),
        ("modules.json", [module("Transformer"), module("Normalize")], "they must be Transformer"),
        ("modules.json", [module("Transformer", "0_Transformer")], "in '0_Transformer'"),
        ("modules.json", {"a": 1}, "must be a list of modules"),
        ("modules.json", [module("Transformer"), {"type": "a.Pooling", "path": 3}], "must be T"),
        ("modules.json", [module("Transformer"), module("Pooling", "2_P")], "2_P.config.json must "
         "hold an object, it is not there"),
        ("1_Pooling/config.json", {**MEAN, "pooling_mode_cls_token": True},
         "asks for pooling_mode_mean_tokens, pooling_mode_cls_token; exactly one"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "exactly one way"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "asks for nothing"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": 1}, "must be true or false, got 1"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False,
                                   "pooling_mode_mean_sqrt_len_tokens": True},
         "asks for pooling_mode_mean_sqrt_len_tokens; cls, mean, max, weightedmean and lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": "mean_sqrt_len_tokens"}, "asks for mean_sqrt"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "asks for cls, mean; exactly"),
        ("1_Pooling/config.json", {**MEAN, "word_embedding_dimension": 33}, "pools states of 33"),
        ("1_Pooling/config.json", {**MEAN, "include_prompt": False}, "include_prompt False"),
        ("1_Pooling/config.json", 3, "must hold an object, it holds 3"),
        ("sentence_bert_config.json", {"max_seq_length": 25}, "cuts texts to 25 tokens, the"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "cuts texts to 0 tokens"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case true"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "'q', but no such"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["q"]}, "but no such prompt"),
    ],
)  # fmt: skip
def test_what_sentence_transformers_asks_for_beyond_us(name, value, said, encoder_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(encoder_folder, folder)
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(InputError, match=said) as error:
        hf.read_config(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("1_Pooling/config.json", {}, {"pooling": "mean"}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False,
                                   "pooling_mode_lasttoken": True}, {"pooling": "last"}),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, {"pooling": "cls"}),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, {"pooling": "weighted"}),
        ("modules.json", [module("Transformer")], {"pooling": None, "normalize": False}),
        ("modules.json", [module("Transformer"), module("Pooling", "1_Pooling")],
         {"pooling": "mean", "normalize": False}),
        ("sentence_bert_config.json", {}, {"text_length": None}),
        ("config_sentence_transformers.json",
         {"prompts": {"q": "ask: ", "d": "x"}, "default_prompt_name": "q"}, {"prefix": "ask: "}),
        ("config_sentence_transformers.json", {"prompts": {"q": "ask: "}}, {"prefix": ""}),
    ],
)  # fmt: skip
def test_what_sentence_transformers_says(name, value, wanted, encoder_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(encoder_folder, folder)
    (folder / name).write_text(json.dumps(value))
    cfg = hf.read_config(folder)[0]
    assert {key: getattr(cfg, key) for key in wanted} == wanted


@pytest.mark.parametrize(("stated", "length"), [(9, 9), (10**30, None), (None, None)])
def test_the_tokenizer_bounds_texts_that_nothing_else_does(
    stated, length, encoder_folder, tmp_path
):
    folder = tmp_path / "changed"
    shutil.copytree(encoder_folder, folder)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": stated}))
    assert hf.read_config(folder)[0].text_length == length
