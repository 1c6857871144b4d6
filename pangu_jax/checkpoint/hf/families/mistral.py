"""Mistral: a Llama without biases whose layers may all look back through one sliding window."""

import dataclasses
from typing import Any

from pangu_jax.checkpoint.hf.families.config_keys import (
    FULL,
    SLIDING,
    dense_width,
    read,
    read_attention,
    read_decoder,
    read_nullable,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.checkpoint.hf.families.llama import TENSORS
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Mistral; without the key the window is 4096, with null there is none."""
    window = read_nullable(config, "sliding_window", int, 4096)
    groups = read(config, "num_key_value_heads", int, 8)
    attention = read_attention({**config, "num_key_value_heads": groups})
    attention = dataclasses.replace(attention, window=window)
    layer = LayerConfig(attention, mlp=MlpConfig(read(config, "intermediate_size", int)))
    layers = (layer,) * read(config, "num_hidden_layers", int)
    kinds = (FULL if window is None else SLIDING,)
    return read_decoder(config, layers, length=131072, kinds=kinds)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Mistral."""
    return {
        **write_decoder(cfg),
        "intermediate_size": dense_width(cfg) or 1,
        "sliding_window": cfg.layers[0].attention.window,
    }


FAMILY = Family("mistral", "MistralForCausalLM", "mistral", TENSORS, read_config, write_config)
