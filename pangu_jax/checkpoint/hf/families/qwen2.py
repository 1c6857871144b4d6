"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v, and none on o."""

from typing import Any

from pangu_jax.checkpoint.hf.families.config_keys import (
    dense_width,
    read,
    read_attention,
    read_decoder,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.checkpoint.hf.families.llama import TENSORS
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Qwen2 without sliding windows."""
    attention = read_attention(config, bias=True, out_bias=False)
    layer = LayerConfig(attention, mlp=MlpConfig(read(config, "intermediate_size", int)))
    layers = (layer,) * read(config, "num_hidden_layers", int)
    return read_decoder(config, layers, length=32768)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Qwen2."""
    width = dense_width(cfg) or 1
    return {**write_decoder(cfg), "intermediate_size": width, "use_sliding_window": False}


FAMILY = Family("qwen2", "Qwen2ForCausalLM", "qwen2", TENSORS, read_config, write_config)
