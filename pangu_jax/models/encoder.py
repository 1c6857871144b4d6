"""The encoder-only transformer (BERT): embeddings, bidirectional layers, pooling.

Parameters: those of `transformer`, and

    {"embed": {"table": [V, D]}, "positions": {"table": [P, D]}, "token_types": {"table": [S, D]},
     "embed_norm": {"scale": [D], "bias": [D]},
     "pooler": {"kernel": [D, D], "bias": [D]},           absent without a pooler
     "classifier": {"kernel": [D, C], "bias": [C]}}       absent without classes

`apply` gives hidden states, `embed` one vector per text, and `classify` scores of a text or a pair.
Source: arXiv 1810.04805; vectors of texts arXiv 1908.10084.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.core.config import check_choices, check_size
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import Normal, Spec
from pangu_jax.models import transformer
from pangu_jax.models.pooling import pool, pooled
from pangu_jax.models.pooling_config import Pooling
from pangu_jax.models.transformer import Output
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.nn.linear import linear, linear_spec
from pangu_jax.nn.mlp import Activation, MlpConfig
from pangu_jax.nn.norm import layer_norm, layer_norm_spec
from pangu_jax.nn.rotary import RopeConfig


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The complete description of an encoder.

    Attributes:
      vocab: V, number of token ids.
      width: D, model width.
      layers: one configuration per layer; none causal, none rotary.
      max_length: P, learned positions: the longest text.
      token_types: S, kinds of tokens, such as those of a first and of a second text.
      norm_eps: of every norm.
      pooling: which hidden states make a text's vector; None if unspecified.
      normalize: whether such vectors are scaled to length 1.
      pooler: whether there is BERT's dense layer on the first token.
      classes: C, scores that `classify` gives; 0 for none.
      text_length: tokens that a text is truncated to before it is embedded; None is `max_length`.
      prefix: what is put before a text that is embedded.
    """

    vocab: int
    width: int
    layers: tuple[LayerConfig, ...]
    max_length: int = 512
    token_types: int = 2
    norm_eps: float = 1e-12
    pooling: Pooling | None = None
    normalize: bool = False
    pooler: bool = False
    classes: int = 0
    text_length: int | None = None
    prefix: str = ""

    def __post_init__(self):
        check_choices(self, "encoder")
        for name in ("vocab", "max_length", "token_types"):
            check_size(f"encoder {name}", getattr(self, name))
        check_size("encoder classes", self.classes, least=0)
        transformer.check_layers("encoder", self)
        if any(layer.attention.causal or layer.attention.rotary for layer in self.layers):
            raise InputError("encoder layers must be neither causal nor rotary")
        if self.classes and not self.pooler:
            raise InputError("an encoder's classes are scored on its pooler, which it lacks")
        if self.text_length is not None:
            check_size("encoder text_length", self.text_length, most=self.max_length)

    @property
    def rope(self) -> RopeConfig:
        """None of the layers asks for it."""
        return RopeConfig()


def bert_layer(heads: int, head_dim: int, width: int, activation: Activation) -> LayerConfig:
    """A layer of BERT: biases everywhere, a plain feed-forward part, LayerNorm after each sum.

    Args:
      heads: number of heads, each with keys and values of its own.
      head_dim: C, size of a head.
      width: F, hidden width of the feed-forward part.
      activation: of the hidden units.
    """
    attention = AttentionConfig(
        *(heads, 1, head_dim),
        query_bias=True,
        key_bias=True,
        value_bias=True,
        out_bias=True,
        rotary=False,
        causal=False,
    )
    mlp = MlpConfig(width, in_bias=True, out_bias=True, activation=activation, gated=False)
    return LayerConfig(attention, mlp=mlp, norm="layer", norm_place="post")


def spec(cfg: EncoderConfig) -> dict[str, Any]:
    """The spec tree of an encoder."""

    def table(rows: int, axis: str | None) -> dict[str, Spec]:
        return {"table": Spec((rows, cfg.width), (axis, "embed"), Normal(0.02))}

    tree = {
        "embed": table(cfg.vocab, "vocab"),
        "positions": table(cfg.max_length, None),
        "token_types": table(cfg.token_types, None),
        "embed_norm": layer_norm_spec(cfg.width),
        **transformer.spec(cfg),
    }
    into = ((cfg.width,), ("embed",))
    if cfg.pooler:
        tree["pooler"] = linear_spec(*into, (cfg.width,), (None,), bias=True)
    if cfg.classes:
        tree["classifier"] = linear_spec(*into, (cfg.classes,), (None,), bias=True)
    return tree


def apply(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: EncoderConfig,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
) -> Output:
    """The forward pass: `transformer.apply` on embedded tokens, each of which sees all of its row.

    Args:
      params: tree of `spec(cfg)`, any float type.
      tokens: int32 [B, T].
      valid: bool [B, T], false for padding, which no token attends to; None is no padding.
      cfg: the model.
      token_types: int32 [B, T]; None is 0 everywhere.
      key: for the layers' dropout; None drops nothing.
      how: layout, implementations, type of activations, and what backward recomputes.

    Returns:
      Hidden states [B, T, D]; those of padding are meaningless.

    Raises:
      InputError: rows longer than the model's positions.
    """
    return transformer.apply(
        params,
        embeddings(params, tokens, cfg=cfg, token_types=token_types, how=how),
        cfg=cfg,
        segments=None if valid is None else valid.astype(jnp.int32),
        key=key,
        how=how,
    )


def embeddings(
    params: dict[str, Any],
    tokens: jax.Array,
    *,
    cfg: EncoderConfig,
    token_types: jax.Array | None = None,
    how: How = HOW,
) -> jax.Array:
    """What the first layer reads, normalized sums of three tables: int32 [B, T] to [B, T, D].

    A token or type outside its table gives NaN.

    Raises:
      InputError: rows longer than the model's positions.
    """
    length = tokens.shape[1]
    if length > cfg.max_length:
        raise InputError(f"rows of {length} tokens, the encoder has {cfg.max_length} positions")
    with jax.named_scope("embed"):

        def rows(name: str, at: jax.Array | None) -> jax.Array:
            table = params[name]["table"]
            found = table[:length] if at is None else jnp.take(table, at, axis=0)
            return found if how.dtype is None else found.astype(how.dtype)

        kinds = jnp.zeros((1, 1), jnp.int32) if token_types is None else token_types
        x = rows("embed", tokens) + rows("token_types", kinds) + rows("positions", None)
        return layer_norm(params["embed_norm"], x, eps=cfg.norm_eps)


def embed(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: EncoderConfig,
    token_types: jax.Array | None = None,
    how: How = HOW,
) -> jax.Array:
    """One vector per row, pooled and normalized as `cfg` says: float32 [B, D].

    The arguments are those of `apply`.

    Raises:
      InputError: `cfg` names no pooling, or rows are too long.
    """
    hidden = apply(params, tokens, valid, cfg=cfg, token_types=token_types, how=how).hidden
    return vectors(hidden, valid, cfg=cfg)


def vectors(hidden: jax.Array, valid: jax.Array | None, *, cfg: EncoderConfig) -> jax.Array:
    """What `embed` makes of hidden states: [B, T, D] to float32 [B, D].

    Raises:
      InputError: `cfg` names no pooling.
    """
    valid = jnp.ones(hidden.shape[:2], bool) if valid is None else valid
    return pooled(hidden, valid, cfg=cfg)


def classify(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array | None = None,
    *,
    cfg: EncoderConfig,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
    how: How = HOW,
) -> jax.Array:
    """Scores of the classes, not normalized: float32 [B, C]; the arguments are those of `apply`.

    They are a linear map of tanh(pooler(hidden state of the first real token)).

    Raises:
      InputError: the model has no classes, or rows are too long.
    """
    check_classes(cfg)
    hidden = apply(params, tokens, valid, cfg=cfg, token_types=token_types, key=key, how=how).hidden
    return scores(params, hidden, valid)


def scores(params: dict[str, Any], hidden: jax.Array, valid: jax.Array | None) -> jax.Array:
    """What `classify` makes of hidden states: [B, T, D] to float32 [B, C]."""
    valid = jnp.ones(hidden.shape[:2], bool) if valid is None else valid
    first = jnp.tanh(linear(params["pooler"], pool(hidden, valid, "cls")))
    return linear(params["classifier"], first)


def check_classes(cfg: EncoderConfig) -> None:
    """Checks that the model has classes.

    Raises:
      InputError: it has none.
    """
    if not cfg.classes:
        raise InputError("the encoder has no classes to score")
