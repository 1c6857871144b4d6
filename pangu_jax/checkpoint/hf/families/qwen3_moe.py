"""Qwen3-MoE: ordinary top-k routing, some layers dense, experts in separate or fused tensors."""

from typing import Any

from pangu_jax.checkpoint.hf.families import qwen3
from pangu_jax.checkpoint.hf.families.config_keys import (
    dense_layers,
    dense_width,
    read,
    read_attention,
    read_decoder,
    read_layers,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig

ROUTED = {
    "moe/router/kernel": "model.layers.{layer}.mlp.gate.weight",
    "moe/experts/gate/kernel": "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    "moe/experts/up/kernel": "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    "moe/experts/down/kernel": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
}

# [E, 2I, H], gate before up, and [E, H, I].
FUSED = {
    "moe/experts/gate/kernel": ("model.layers.{layer}.mlp.experts.gate_up_proj", 0, 2),
    "moe/experts/up/kernel": ("model.layers.{layer}.mlp.experts.gate_up_proj", 1, 2),
    "moe/experts/down/kernel": ("model.layers.{layer}.mlp.experts.down_proj", 0, 1),
}


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Qwen3-MoE: layer i is routed where (i + 1) is a multiple of `decoder_sparse_step`."""
    bias = read(config, "attention_bias", bool, False)
    attention = read_attention(config, bias=bias, qk_norm=True)
    step = read(config, "decoder_sparse_step", int, 1)
    count = read(config, "num_hidden_layers", int)
    dense = read_layers(config, "mlp_only_layers")
    dense |= {i for i in range(count) if step < 1 or (i + 1) % step}
    layers = tuple(
        LayerConfig(attention, mlp=MlpConfig(read(config, "intermediate_size", int)))
        if i in dense
        else LayerConfig(attention, moe=_read_moe(config))
        for i in range(count)
    )
    return read_decoder(config, layers, length=32768)


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Qwen3-MoE; dense layers are listed one by one."""
    moe = next((layer.moe for layer in cfg.layers if layer.moe), MoEConfig(1, 1, 1, 1))
    return {
        **write_decoder(cfg),
        "intermediate_size": dense_width(cfg) or moe.width * moe.top_k,
        "attention_bias": cfg.layers[0].attention.query_bias,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(cfg),
        "moe_intermediate_size": moe.width,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.renormalize,
    }


def _read_moe(config: dict[str, Any]) -> MoEConfig:
    # transformers 5 writes num_local_experts.
    name = "num_local_experts" if config.get("num_experts") is None else "num_experts"
    return MoEConfig(
        experts=read(config, name, int),
        groups=1,
        top_k=read(config, "num_experts_per_tok", int),
        width=read(config, "moe_intermediate_size", int),
        renormalize=read(config, "norm_topk_prob", bool, False),
    )


FAMILY = Family(
    "qwen3-moe",
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    {**qwen3.TENSORS, **ROUTED},
    read_config,
    write_config,
    fused=FUSED,
)
