"""Decoders without a head, for embeddings, such as transformers' MistralModel."""

import dataclasses
from typing import Any

from pangu_jax.checkpoint.hf.families import sentence_transformers
from pangu_jax.checkpoint.hf.families.config_keys import read
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.core.errors import InputError
from pangu_jax.models.embedder import EmbedderConfig

CAUSAL = "is_causal"  # transformers 5: whether tokens see no later ones
LEAF, HEAD = "norm/scale", "head/kernel"


def bare(family: Family) -> Family:
    """The family of the same decoders without a head."""

    def read_config(config: dict[str, Any]) -> EmbedderConfig:
        causal = read(config, CAUSAL, bool, True)
        rest = {name: value for name, value in config.items() if name != CAUSAL}
        decoder = dataclasses.replace(family.read(rest), tied=True)
        return EmbedderConfig(decoder, causal=causal)

    def write_config(cfg: EmbedderConfig) -> dict[str, Any]:
        refuse_own(cfg, architecture)
        return {**family.write(cfg.decoder), CAUSAL: cfg.causal}

    architecture = family.architecture.replace("ForCausalLM", "Model")
    tensors = {leaf: name for leaf, name in family.tensors.items() if leaf != HEAD}
    return dataclasses.replace(
        family,
        name=f"{family.name}-embedder",
        architecture=architecture,
        tensors={leaf: name.removeprefix(family.prefix) for leaf, name in tensors.items()},
        read=read_config,
        write=write_config,
        kind="embedder",
        read_sidecars=sentence_transformers.read_sidecars,
        write_sidecars=sentence_transformers.write_sidecars,
    )


def refuse_own(cfg: EmbedderConfig, architecture: str) -> None:
    """Raises for a model that files of a bare decoder cannot express.

    Raises:
      InputError: names it.
    """
    for name in ("latent", "append_eos"):
        if getattr(cfg, name):
            raise InputError(f"a {architecture} cannot express {name}")
