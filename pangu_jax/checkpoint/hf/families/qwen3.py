"""Qwen3: explicit head size, and each query and key head normalized before rotation."""

from typing import Any

from pangu_jax.checkpoint.hf.families import llama
from pangu_jax.checkpoint.hf.families.config_keys import (
    dense_width,
    read,
    read_attention,
    read_decoder,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

TENSORS = {
    **llama.TENSORS,
    "attention/query_norm/scale": "model.layers.{layer}.self_attn.q_norm.weight",
    "attention/key_norm/scale": "model.layers.{layer}.self_attn.k_norm.weight",
}


def attention(config: dict[str, Any]) -> AttentionConfig:
    """Heads of a Qwen3, of size 128 unless the file says otherwise."""
    config = {**config, "head_dim": read(config, "head_dim", int, 128)}
    return read_attention(config, bias=read(config, "attention_bias", bool, False), qk_norm=True)


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Qwen3 without sliding windows."""
    mlp = MlpConfig(read(config, "intermediate_size", int))
    layer = LayerConfig(attention(config), mlp=mlp)
    layers = (layer,) * read(config, "num_hidden_layers", int)
    return read_decoder(config, layers, length=32768)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Qwen3."""
    return {
        **write_decoder(cfg),
        "intermediate_size": dense_width(cfg) or 1,
        "attention_bias": cfg.layers[0].attention.query_bias,
        "use_sliding_window": False,
    }


FAMILY = Family("qwen3", "Qwen3ForCausalLM", "qwen3", TENSORS, read_config, write_config)
