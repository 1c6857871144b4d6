"""openPangu-Embedded: a Llama with biases on q, k, v and o where `bias` is true."""

from typing import Any

from pangu_jax.checkpoint.hf.families.config_keys import (
    REQUIRED,
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
    """An openPangu-Embedded."""
    attention = read_attention(config, bias=read(config, "bias", bool, False))
    layer = LayerConfig(attention, mlp=MlpConfig(read(config, "intermediate_size", int)))
    layers = (layer,) * read(config, "num_hidden_layers", int)
    return read_decoder(config, layers, theta=REQUIRED, eps=1e-5, length=32768)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of an openPangu-Embedded."""
    return {
        **write_decoder(cfg),
        "intermediate_size": dense_width(cfg) or 1,
        "bias": cfg.layers[0].attention.query_bias,
    }


FAMILY = Family(
    "pangu-embedded",
    "PanguEmbeddedForCausalLM",
    "PanguEmbedded",
    TENSORS,
    read_config,
    write_config,
)
