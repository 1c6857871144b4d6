"""Llama 2 and 3, and the names that all other families start from."""

from typing import Any

from pangu_jax.checkpoint.hf.families.config_keys import (
    dense_width,
    read,
    read_attention,
    read_decoder,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family, linear
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

TENSORS = {
    "embed/table": "model.embed_tokens.weight",
    "attention_norm/scale": "model.layers.{layer}.input_layernorm.weight",
    **linear("attention/query", "model.layers.{layer}.self_attn.q_proj"),
    **linear("attention/key", "model.layers.{layer}.self_attn.k_proj"),
    **linear("attention/value", "model.layers.{layer}.self_attn.v_proj"),
    **linear("attention/out", "model.layers.{layer}.self_attn.o_proj"),
    "mlp_norm/scale": "model.layers.{layer}.post_attention_layernorm.weight",
    **linear("mlp/gate", "model.layers.{layer}.mlp.gate_proj"),
    **linear("mlp/up", "model.layers.{layer}.mlp.up_proj"),
    **linear("mlp/down", "model.layers.{layer}.mlp.down_proj"),
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Llama; `attention_bias` is on q, k, v and o, `mlp_bias` on gate, up and down."""
    bias = read(config, "mlp_bias", bool, False)
    mlp = MlpConfig(read(config, "intermediate_size", int), in_bias=bias, out_bias=bias)
    attention = read_attention(config, bias=read(config, "attention_bias", bool, False))
    layers = (LayerConfig(attention, mlp=mlp),) * read(config, "num_hidden_layers", int)
    return read_decoder(config, layers)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Llama.

    Raises:
      InputError: the heads do not divide the width, which stock transformers refuses to load.
    """
    first = cfg.layers[0]
    heads = first.attention.kv_heads * first.attention.q_per_kv
    if cfg.width % heads:
        raise InputError(
            f"transformers loads a LlamaForCausalLM only where the {heads} heads divide the "
            f"hidden size {cfg.width}"
        )
    return {
        **write_decoder(cfg),
        "intermediate_size": dense_width(cfg) or 1,
        "attention_bias": first.attention.query_bias,
        "mlp_bias": first.mlp is not None and first.mlp.in_bias,
    }


FAMILY = Family("llama", "LlamaForCausalLM", "llama", TENSORS, read_config, write_config)
