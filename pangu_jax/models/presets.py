"""Named decoder configurations: the published model, and sizes that are quick to train."""

import dataclasses

from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.nn.rotary import RopeConfig

# 256 bytes, the document boundary, and a few reserved ids: see data.tokenizer.ByteTokenizer.
BYTE_VOCAB = 264


def uniform(
    vocab: int,
    width: int,
    layers: int,
    attention: AttentionConfig,
    *,
    mlp: MlpConfig | None = None,
    moe: MoEConfig | None = None,
    tied: bool = False,
    max_length: int = 4096,
    rope: RopeConfig = RopeConfig(),
) -> DecoderConfig:
    """A decoder of `layers` equal layers."""
    layer = LayerConfig(attention, mlp=mlp, moe=moe)
    return DecoderConfig(
        vocab, width, (layer,) * layers, rope=rope, tied=tied, max_length=max_length
    )


def byte_model(
    width: int,
    layers: int,
    kv_heads: int,
    q_per_kv: int,
    head_dim: int,
    mlp_width: int,
    max_length: int,
    tied: bool = False,
) -> DecoderConfig:
    """A dense byte model: KV groups, query heads per group, head size, and the longest text."""
    attention = AttentionConfig(kv_heads, q_per_kv, head_dim)
    more = {"max_length": max_length, "tied": tied}
    return uniform(BYTE_VOCAB, width, layers, attention, mlp=MlpConfig(mlp_width), **more)


def pangu_pro_moe() -> DecoderConfig:
    """Pangu Pro MoE: 71,988,781,056 parameters, 16,498,139,136 of them active.

    Source: arXiv 2505.21411, Table 1. The base of the rotary positions and the longest context are
    class defaults of the public implementations, not read from the released config.
    """
    biases = {"query_bias": True, "key_bias": True, "value_bias": True, "out_bias": True}
    return uniform(
        153376,
        5120,
        48,
        AttentionConfig(kv_heads=8, q_per_kv=5, head_dim=128, **biases),
        moe=MoEConfig(
            experts=64, groups=8, top_k=1, width=1344, shared_width=5376, router_scale=True
        ),
        rope=RopeConfig(1e6),
    )


def moge_tiny() -> DecoderConfig:
    """A grouped-expert byte model for two CPU cores: 1.5 M parameters, 0.6 M active."""
    return uniform(
        BYTE_VOCAB,
        128,
        3,
        AttentionConfig(kv_heads=2, q_per_kv=2, head_dim=32),
        moe=MoEConfig(experts=32, groups=8, top_k=1, width=32, shared_width=64, router_scale=True),
        max_length=512,
    )


def dense_tiny() -> DecoderConfig:
    """A dense byte model whose active parameters are about those of `moge_tiny`."""
    return byte_model(128, 3, kv_heads=2, q_per_kv=2, head_dim=32, mlp_width=332, max_length=512)


# Tied, as GPT-2 is, with which the latent methods were published: a state that is fed back as an
# input then means the same as a token's row.
def dense_small() -> DecoderConfig:
    """A dense byte model for reasoning tasks on one GPU: 8 layers, 14.3 M parameters."""
    sizes = {"kv_heads": 6, "q_per_kv": 1, "head_dim": 64, "mlp_width": 1024, "max_length": 1024}
    return byte_model(384, 8, **sizes, tied=True)


def dense_shallow() -> DecoderConfig:
    """A dense byte model as wide as GPT-2 small, of two layers: 14.4 M parameters."""
    sizes = {"kv_heads": 12, "q_per_kv": 1, "head_dim": 64, "mlp_width": 2048, "max_length": 1024}
    return byte_model(768, 2, **sizes, tied=True)


def moge_small() -> DecoderConfig:
    """A grouped-expert byte model for one GPU: 443 M parameters, 97 M active."""
    return uniform(
        BYTE_VOCAB,
        768,
        12,
        AttentionConfig(kv_heads=6, q_per_kv=2, head_dim=64),
        moe=MoEConfig(
            experts=64, groups=8, top_k=1, width=224, shared_width=896, router_scale=True
        ),
        max_length=2048,
    )


def moge_medium() -> DecoderConfig:
    """A grouped-expert byte model for several GPUs: 3.4 B parameters, 0.6 B active."""
    return uniform(
        BYTE_VOCAB,
        2048,
        8,
        AttentionConfig(kv_heads=4, q_per_kv=4, head_dim=128),
        moe=MoEConfig(
            experts=64, groups=8, top_k=1, width=1024, shared_width=2048, router_scale=True
        ),
    )


PRESETS = {
    "pangu-pro-moe": pangu_pro_moe,
    "moge-tiny": moge_tiny,
    "dense-tiny": dense_tiny,
    "dense-small": dense_small,
    "dense-shallow": dense_shallow,
    "moge-small": moge_small,
    "moge-medium": moge_medium,
}


def preset(name: str, *, vocab: int | None = None) -> DecoderConfig:
    """The decoder of that name, with another vocabulary if one is given.

    Raises:
      InputError: an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown model preset {name!r}; known: {', '.join(PRESETS)}")
    cfg = PRESETS[name]()
    return cfg if vocab is None else dataclasses.replace(cfg, vocab=vocab)


def as_topk(cfg: DecoderConfig) -> DecoderConfig:
    """The ordinary top-k twin: the same sizes and active experts, all experts in one group."""

    def twin(layer: LayerConfig) -> LayerConfig:
        if layer.moe is None:
            return layer
        moe = dataclasses.replace(layer.moe, groups=1, top_k=layer.moe.groups * layer.moe.top_k)
        return dataclasses.replace(layer, moe=moe)

    return dataclasses.replace(cfg, layers=tuple(twin(layer) for layer in cfg.layers))
