"""Text embeddings from a decoder: its layers without the head, causal or bidirectional, pooled.

Parameters: those of the decoder without its head, and {"latent": see `nn.latent_attention`} where
latent attention precedes the pooling.

Source: last-token pooling arXiv 2401.00368; weighted means arXiv 2202.08904; both ways, and means
without the instruction, arXiv 2402.09906 (GritLM); latent attention arXiv 2405.17428 (NV-Embed).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choices, check_size
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.pooling import pooled
from pangu_jax.models.pooling_config import Pooling
from pangu_jax.models.transformer import Output
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.latent_attention import (
    LatentAttentionConfig,
    latent_attention,
    latent_attention_spec,
)
from pangu_jax.nn.rotary import RopeConfig


@dataclasses.dataclass(frozen=True)
class EmbedderConfig:
    """The complete description of an embedder.

    Attributes:
      decoder: the decoder, tied, as its head is not used.
      causal: whether tokens see no later ones, as in the decoder; else all see all, without window.
      pooling: which hidden states make a text's vector; None if unspecified.
      normalize: whether such vectors are scaled to length 1.
      pool_prefix: whether the prefix's tokens are pooled too, and not just seen.
      latent: the latent attention before the pooling; None is none.
      append_eos: whether the token that ends a text is put behind it, unless the tokenizer does.
      text_length: tokens that a text is truncated to before it is embedded; None is `max_length`.
      prefix: what is put before a text that is embedded, such as an instruction.
    """

    decoder: DecoderConfig
    causal: bool = True
    pooling: Pooling | None = None
    normalize: bool = False
    pool_prefix: bool = True
    latent: LatentAttentionConfig | None = None
    append_eos: bool = False
    text_length: int | None = None
    prefix: str = ""

    def __post_init__(self):
        check_choices(self, "embedder")
        if not self.decoder.tied:
            raise InputError("an embedder's decoder must be tied: it has no head")
        if self.text_length is not None:
            check_size("embedder text_length", self.text_length, most=self.max_length)

    @property
    def vocab(self) -> int:
        """V, number of token ids."""
        return self.decoder.vocab

    @property
    def width(self) -> int:
        """D, model width."""
        return self.decoder.width

    @property
    def max_length(self) -> int:
        """The longest context the decoder was made for."""
        return self.decoder.max_length

    @property
    def rope(self) -> RopeConfig:
        """The decoder's."""
        return self.decoder.rope

    @property
    def norm_eps(self) -> float:
        """The decoder's."""
        return self.decoder.norm_eps

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        """The decoder's layers, which see both ways where the embedder does."""
        return (
            self.decoder.layers if self.causal else tuple(map(_bidirectional, self.decoder.layers))
        )


def _bidirectional(layer: LayerConfig) -> LayerConfig:
    attention = dataclasses.replace(layer.attention, causal=False, window=None)
    return dataclasses.replace(layer, attention=attention)


def spec(cfg: EmbedderConfig) -> dict[str, Any]:
    """The spec tree of an embedder."""
    tree = {**decoder.spec(cfg.decoder), **transformer.spec(cfg)}
    return (
        tree
        if cfg.latent is None
        else {**tree, "latent": latent_attention_spec(cfg.width, cfg.latent)}
    )


def from_decoder(
    params: dict[str, Any], cfg: DecoderConfig
) -> tuple[dict[str, Any], EmbedderConfig]:
    """A decoder without its head as an embedder: parameters and configuration.

    Args:
      params: tree of `decoder.spec(cfg)`.
      cfg: the decoder.
    """
    rest = {name: branch for name, branch in params.items() if name != "head"}
    return rest, EmbedderConfig(dataclasses.replace(cfg, tied=True))


def bidirectional(
    params: dict[str, Any], cfg: EmbedderConfig
) -> tuple[dict[str, Any], EmbedderConfig]:
    """The same embedder with bidirectional attention.

    Args:
      params: tree of `spec(cfg)`.
      cfg: the embedder.
    """
    found = dataclasses.replace(cfg, causal=False)
    # Layers that differed in their windows alone are one run now.
    return {**params, "runs": _rejoined(params["runs"], found)}, found


def _rejoined(runs: list[Any], cfg: EmbedderConfig) -> list[Any]:
    joined, pieces = [], iter(runs)
    for _, number in transformer.run_lengths(cfg):
        parts: list[Any] = []
        while sum(jax.tree.leaves(part)[0].shape[0] for part in parts) < number:
            parts.append(next(pieces))
        joined.append(parts[0] if len(parts) == 1 else jax.tree.map(_stacked, *parts))
    return joined


def _stacked(*arrays: jax.Array) -> jax.Array:
    return jnp.concatenate(arrays)


def apply(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: EmbedderConfig,
    key: jax.Array | None = None,
    how: How = HOW,
) -> Output:
    """The forward pass up to what is pooled.

    Args:
      params: tree of `spec(cfg)`, any float type.
      tokens: int32 [B, T]; a row's positions count from its first slot.
      valid: bool [B, T], false for padding, which no token attends to; None is no padding.
      cfg: the model.
      key: for the layers' dropout; None drops nothing.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      Hidden states [B, T, D]; those of padding are meaningless.
    """
    found = transformer.apply(
        params,
        decoder.embed(params, tokens, cfg=cfg.decoder, how=how),
        cfg=cfg,
        segments=None if valid is None else valid.astype(jnp.int32),
        key=key,
        how=how,
    )
    if cfg.latent is None:
        return found
    return found.replace(
        hidden=latent_attention(params["latent"], found.hidden, cfg=cfg.latent, how=how)
    )


def embed(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: EmbedderConfig,
    states: jax.Array | None = None,
    how: How = HOW,
) -> jax.Array:
    """One vector per row, pooled and normalized as `cfg` says: float32 [B, D].

    Args:
      params: see `apply`.
      tokens: see `apply`.
      valid: see `apply`.
      cfg: the model.
      states: bool [B, T], whose states are pooled; None is all that are valid.
      how: see `apply`.

    Raises:
      InputError: `cfg` names no pooling.
    """
    hidden = apply(params, tokens, valid, cfg=cfg, how=how).hidden
    states = valid if states is None else states
    states = jnp.ones(hidden.shape[:2], bool) if states is None else states
    return pooled(hidden, states, cfg=cfg)
