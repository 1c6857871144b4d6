"""Pangu Pro MoE: grouped experts, one from each group, with a learned factor per expert.

The file has no key for the number of groups: it is the number of experts a token uses.

Source: arXiv 2505.21411, Table 1; names and defaults of the public inference code.
"""

from typing import Any

from pangu_jax.checkpoint.hf.families import llama
from pangu_jax.checkpoint.hf.families.config_keys import (
    dense_layers,
    dense_width,
    read,
    read_attention,
    read_decoder,
    read_layers,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family, linear
from pangu_jax.checkpoint.hf.families.qwen3_moe import ROUTED
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

TENSORS = {
    **llama.TENSORS,
    **ROUTED,
    "moe/router/scale": "model.layers.{layer}.mlp.router_scale",
    **linear("moe/shared/gate", "model.layers.{layer}.mlp.shared_expert.gate_proj"),
    **linear("moe/shared/up", "model.layers.{layer}.mlp.shared_expert.up_proj"),
    **linear("moe/shared/down", "model.layers.{layer}.mlp.shared_expert.down_proj"),
}


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Pangu Pro MoE; `intermediate_size` is read only if there are dense layers."""
    attention = read_attention(config, bias=True)
    dense = read_layers(config, "mlp_only_layers")
    layers = tuple(
        LayerConfig(attention, mlp=MlpConfig(read(config, "intermediate_size", int)))
        if i in dense
        else LayerConfig(attention, moe=_read_moe(config))
        for i in range(read(config, "num_hidden_layers", int))
    )
    return read_decoder(config, layers, theta=1e6, eps=1e-5, length=4096)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Pangu Pro MoE."""
    moe = next((layer.moe for layer in cfg.layers if layer.moe), MoEConfig(1, 1, 1, 1))
    keys = {
        **write_decoder(cfg),
        "moe_intermediate_size": moe.width,
        "shared_expert_intermediate_size": moe.shared_width,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.groups * moe.top_k,
    }
    if dense_layers(cfg):
        keys |= {"mlp_only_layers": dense_layers(cfg), "intermediate_size": dense_width(cfg)}
    return keys


def _read_moe(config: dict[str, Any]) -> MoEConfig:
    return MoEConfig(
        experts=read(config, "num_experts", int),
        groups=read(config, "num_experts_per_tok", int),
        top_k=1,
        width=read(config, "moe_intermediate_size", int),
        shared_width=read(config, "shared_expert_intermediate_size", int, 0),
        router_scale=True,
    )


FAMILY = Family(
    "pangu-pro-moe",
    "PanguProMoEForCausalLM",
    "PanGuMoE",
    TENSORS,
    read_config,
    write_config,
    skipped=(r".*rotary_emb\.inv_freq.*", r".*kv_cache_offset.*", r".*\.kv_cache_scale"),
)
