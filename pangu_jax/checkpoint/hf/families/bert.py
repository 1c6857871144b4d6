"""BERT: the bare encoder, which sentence-transformers has too, and one with a head for scores."""

import dataclasses
from collections.abc import Container
from typing import Any

from pangu_jax.checkpoint.hf.families import sentence_transformers
from pangu_jax.checkpoint.hf.families.config_keys import read, refuse_given
from pangu_jax.checkpoint.hf.families.family import Family, linear, norm
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.models.encoder import EncoderConfig, bert_layer
from pangu_jax.nn.mlp import Activation

PREFIX = "bert."


TENSORS = {
    "embed/table": "embeddings.word_embeddings.weight",
    "positions/table": "embeddings.position_embeddings.weight",
    "token_types/table": "embeddings.token_type_embeddings.weight",
    **norm("embed_norm", "embeddings.LayerNorm"),
    **linear("attention/query", "encoder.layer.{layer}.attention.self.query"),
    **linear("attention/key", "encoder.layer.{layer}.attention.self.key"),
    **linear("attention/value", "encoder.layer.{layer}.attention.self.value"),
    **linear("attention/out", "encoder.layer.{layer}.attention.output.dense"),
    **norm("attention_norm", "encoder.layer.{layer}.attention.output.LayerNorm"),
    **linear("mlp/up", "encoder.layer.{layer}.intermediate.dense"),
    **linear("mlp/down", "encoder.layer.{layer}.output.dense"),
    **norm("mlp_norm", "encoder.layer.{layer}.output.LayerNorm"),
    **linear("pooler", "pooler.dense"),
}

# Names of activations in transformers: ours; the first of a kind is written.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_config(config: dict[str, Any]) -> EncoderConfig:
    """A BertModel; the tensors tell whether it has its pooler (see `infer_from_tensors`).

    Raises:
      InputError: a key is missing, of the wrong kind, or asks for something the encoder lacks.
    """
    _refuse_unsupported(config)
    width, heads = read(config, "hidden_size", int), read(config, "num_attention_heads", int)
    if heads < 1 or width < 1 or width % heads:
        raise InputError(f"num_attention_heads {heads} must divide hidden_size {width}")
    act = config.get("hidden_act") or "gelu"
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(f"hidden_act {act!r:.40} is not supported; known: {known}")
    units = read(config, "intermediate_size", int)
    layer = bert_layer(heads, width // heads, units, _ACTIVATIONS[act])
    return EncoderConfig(
        vocab=read(config, "vocab_size", int),
        width=width,
        layers=(layer,) * read(config, "num_hidden_layers", int),
        max_length=read(config, "max_position_embeddings", int, 512),
        token_types=read(config, "type_vocab_size", int, 2),
        norm_eps=read(config, "layer_norm_eps", float, 1e-12),
        pooler=True,
    )


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    """The keys of a BertModel."""
    attention, mlp = cfg.layers[0].attention, cfg.layers[0].mlp
    known = {} if mlp is None else {own: name for name, own in reversed(_ACTIVATIONS.items())}
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": len(cfg.layers),
        "num_attention_heads": attention.kv_heads * attention.q_per_kv,
        "intermediate_size": 1 if mlp is None else mlp.width,
        "hidden_act": "gelu" if mlp is None else known[mlp.activation],
        "max_position_embeddings": cfg.max_length,
        "type_vocab_size": cfg.token_types,
        "layer_norm_eps": cfg.norm_eps,
    }


def infer_from_tensors(cfg: EncoderConfig, leaves: Container[str]) -> EncoderConfig:
    """The model with a pooler if there are tensors for one: config.json does not say."""
    return dataclasses.replace(cfg, pooler="pooler/kernel" in leaves)


def read_classifier(config: dict[str, Any]) -> EncoderConfig:
    """A BertForSequenceClassification.

    Raises:
      InputError: as `read_config`, or `num_labels` and `id2label` disagree.
    """
    labels = read(config, "id2label", dict, {})
    classes = read(config, "num_labels", int, len(labels) or 2)
    check_size("num_labels", classes)
    if labels and len(labels) != classes:
        raise InputError(f"num_labels is {classes}, id2label names {len(labels)}")
    return dataclasses.replace(read_config(config), pooler=True, classes=classes)


def write_classifier(cfg: EncoderConfig) -> dict[str, Any]:
    """The keys of a BertForSequenceClassification; names of labels are unknown.

    Raises:
      InputError: the encoder has no classes.
    """
    if not cfg.classes:
        raise InputError("a BertForSequenceClassification cannot express classes = 0")
    return {**write_config(cfg), "num_labels": cfg.classes}


def _refuse_unsupported(config: dict[str, Any]) -> None:
    refuse_given(config)
    refuse_given(config, ("pruned_heads",))
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise InputError(f"position_embedding_type {kind!r:.40} is not supported; only absolute is")
    for name in ("is_decoder", "add_cross_attention"):
        if read(config, name, bool, False):
            raise InputError(f"{name} is true; an encoder is read, not a decoder")


_SKIPPED = (rf"({PREFIX})?embeddings\.position_ids",)
FAMILY = Family(
    "bert", "BertModel", "bert", TENSORS, read_config, write_config,
    skipped=_SKIPPED, kind="encoder", prefix=PREFIX, infer_from_tensors=infer_from_tensors,
    read_sidecars=sentence_transformers.read_sidecars,
    write_sidecars=sentence_transformers.write_sidecars,
)  # fmt: skip
CLASSIFIER = Family(
    "bert-classifier", "BertForSequenceClassification", "bert",
    {leaf: PREFIX + name for leaf, name in TENSORS.items()} | linear("classifier", "classifier"),
    read_classifier, write_classifier,
    skipped=_SKIPPED, kind="encoder", prefix=PREFIX,
    read_sidecars=sentence_transformers.read_sidecars,
    write_sidecars=sentence_transformers.write_sidecars,
)  # fmt: skip
