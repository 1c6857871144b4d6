"""NV-Embed: a Mistral with bidirectional attention, and latent attention before the mean."""

import dataclasses
from typing import Any

from pangu_jax.checkpoint.hf.families import mistral
from pangu_jax.checkpoint.hf.families.config_keys import read
from pangu_jax.checkpoint.hf.families.family import Family, linear, norm
from pangu_jax.core.errors import InputError
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.nn.latent_attention import LatentAttentionConfig

PREFIX, LATENT = "embedding_model.", "latent_attention_model."
_LOOK, _UNITS = (f"{LATENT}cross_attend_blocks.{i}" for i in (0, 1))
_USUAL = {  # which the released files leave out
    "num_latents_value": 512,
    "num_cross_heads": 8,
    "cross_dim_head": 4096,
    "hidden_dim": 4096,
    "latent_dim": 4096,
}
_TIMES = 4  # hidden units of the feed-forward part, by the width; no key says so

TENSORS = {
    **{
        leaf: PREFIX + name.removeprefix(mistral.FAMILY.prefix)
        for leaf, name in mistral.FAMILY.tensors.items() if leaf != "head/kernel"
    },
    "latent/table": f"{LATENT}latents",
    **norm("latent/attention_norm", f"{_LOOK}.norm"),
    **norm("latent/context_norm", f"{_LOOK}.norm_context"),
    "latent/attention/query/kernel": f"{_LOOK}.fn.to_q.weight",
    "latent/attention/key_value/kernel": f"{_LOOK}.fn.to_kv.weight",
    "latent/attention/out/kernel": f"{_LOOK}.fn.to_out.weight",
    **norm("latent/mlp_norm", f"{_UNITS}.norm"),
    **linear("latent/mlp/up_gate", f"{_UNITS}.fn.net.0"),
    **linear("latent/mlp/down", f"{_UNITS}.fn.net.2"),
}  # fmt: skip


def read_config(config: dict[str, Any]) -> EmbedderConfig:
    """An NV-Embed; its vectors are means without the instruction, and texts get an end token.

    Raises:
      InputError: a key is missing, of the wrong kind, or asks for something the model lacks.
    """
    for name, known in (("mask_type", "b"), ("padding_side", "right")):
        if config.get(name, known) != known:
            raise InputError(f"{name} is {config[name]!r:.40}; only {known!r} is supported")
    text, own = (read(config, f"{name}_config", dict) for name in ("text", "latent_attention"))
    decoder = mistral.read_config({**text, "sliding_window": None})
    sizes = {name: read(own, name, int, usual) for name, usual in _USUAL.items()}
    for name in ("hidden_dim", "latent_dim"):
        if sizes[name] != decoder.width:
            raise InputError(
                f"latent_attention_config.{name} is {sizes[name]}, the model's width "
                f"{decoder.width}"
            )
    latent = LatentAttentionConfig(
        latents=sizes["num_latents_value"],
        heads=sizes["num_cross_heads"],
        head_dim=sizes["cross_dim_head"],
        units=_TIMES * decoder.width,
    )
    return EmbedderConfig(
        dataclasses.replace(decoder, tied=True),
        causal=False,
        pooling="mean",
        normalize=read(own, "output_normalize", bool, True),
        pool_prefix=not read(config, "is_mask_instruction", bool, True),
        latent=latent,
        append_eos=True,
    )


def write_config(cfg: EmbedderConfig) -> dict[str, Any]:
    """The keys of an NV-Embed.

    Raises:
      InputError: the embedder has no latent attention.
    """
    if cfg.latent is None:
        raise InputError("an NVEmbedModel cannot express latent being absent")
    return {
        "add_eos": cfg.append_eos,
        "is_mask_instruction": not cfg.pool_prefix,
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": cfg.latent.latents,
            "num_cross_heads": cfg.latent.heads,
            "cross_dim_head": cfg.latent.head_dim,
            "hidden_dim": cfg.width,
            "latent_dim": cfg.width,
            "output_normalize": cfg.normalize,
        },
        "mask_type": "b",
        "padding_side": "right",
        "text_config": {
            **mistral.write_config(cfg.decoder),
            "architectures": ["MistralModel"],
            "model_type": "bidir_mistral",
        },
    }


FAMILY = Family(
    "nv-embed", "NVEmbedModel", "nvembed", TENSORS, read_config, write_config,
    kind="embedder", prefix="",
)  # fmt: skip
