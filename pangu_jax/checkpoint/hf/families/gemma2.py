"""Gemma 2: sandwich norms, GeGLU, soft-caps, scaled embeddings, every other layer in a window.

Source: arXiv 2408.00118, section 2, and transformers for details left open there.
"""

import dataclasses
from typing import Any

from pangu_jax.checkpoint.hf.families import llama
from pangu_jax.checkpoint.hf.families.config_keys import (
    FULL,
    SLIDING,
    dense_width,
    read,
    read_attention,
    read_decoder,
    read_kinds,
    read_nullable,
    write_decoder,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

_LAYER = "model.layers.{layer}."
TENSORS = {
    **llama.TENSORS,
    "attention_post_norm/scale": _LAYER + "post_attention_layernorm.weight",
    "mlp_norm/scale": _LAYER + "pre_feedforward_layernorm.weight",
    "mlp_post_norm/scale": _LAYER + "post_feedforward_layernorm.weight",
}
ACTIVATION = "gelu_pytorch_tanh"


def read_config(config: dict[str, Any]) -> DecoderConfig:
    """A Gemma 2.

    Raises:
      InputError: another activation, a score that is not scaled by a positive number.
    """
    act = config.get("hidden_activation") or ACTIVATION
    if act != ACTIVATION:
        raise InputError(f"hidden_activation {act!r:.40} is not supported; only {ACTIVATION} is")
    scaled = read(config, "query_pre_attn_scalar", float, 256.0)
    if not scaled > 0:
        raise InputError(f"query_pre_attn_scalar must be positive, got {scaled}")
    sizes = {"num_key_value_heads": 4, "head_dim": 256}
    filled = {name: read(config, name, int, size) for name, size in sizes.items()}
    attention = dataclasses.replace(
        read_attention({**config, **filled}, bias=read(config, "attention_bias", bool, False)),
        scale=scaled**-0.5,
        softcap=read_nullable(config, "attn_logit_softcapping", float, 50.0),
    )
    window = read_nullable(config, "sliding_window", int, 4096)
    mlp = MlpConfig(read(config, "intermediate_size", int), activation="gelu_tanh")
    count = read(config, "num_hidden_layers", int)
    usual = [FULL if i % 2 else SLIDING for i in range(count)]
    layers = tuple(
        LayerConfig(
            dataclasses.replace(attention, window=window if kind == SLIDING else None),
            mlp=mlp,
            norm="zero_centered_rms",
            norm_place="sandwich",
        )
        for kind in read_kinds(config, (FULL, SLIDING)) or usual
    )
    if len(layers) != count:
        raise InputError(f"layer_types has {len(layers)} entries for num_hidden_layers {count}")
    cfg = read_decoder(
        {"tie_word_embeddings": True, **config, "hidden_act": None},
        layers,
        length=8192,
        kinds=(FULL, SLIDING),
    )
    return dataclasses.replace(
        cfg,
        embed_scale=cfg.width**0.5,
        logit_softcap=read_nullable(config, "final_logit_softcapping", float, 30.0),
    )


def write_config(cfg: DecoderConfig) -> dict[str, Any]:
    """The keys of a Gemma 2."""
    attention = cfg.layers[0].attention
    scaled = (attention.scale or attention.head_dim**-0.5) ** -2
    windows = [layer.attention.window for layer in cfg.layers]
    keys = write_decoder(cfg)
    del keys["hidden_act"]
    return {
        **keys,
        "intermediate_size": dense_width(cfg) or 1,
        "hidden_activation": ACTIVATION,
        "attention_bias": attention.query_bias,
        "query_pre_attn_scalar": round(scaled) if abs(scaled - round(scaled)) < 1e-6 else scaled,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": cfg.logit_softcap,
        "sliding_window": next((window for window in windows if window), None),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


FAMILY = Family("gemma2", "Gemma2ForCausalLM", "gemma2", TENSORS, read_config, write_config)
