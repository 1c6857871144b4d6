"""An encoder as one function per length: tokens in; a vector per row, or a head's scores, out.

Layers are written out one by one, each with its own parameters. Rows are independent, and what is
not valid leaves no trace, so a text may be run at any length that holds it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.export.program import Bundle, Program, check_profiles
from pangu_jax.models import encoder, transformer
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import check_pooling
from pangu_jax.nn.how import HOW, How


def vectors(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array,
    *,
    cfg: EncoderConfig,
    how: How = HOW,
) -> dict[str, jax.Array]:
    """The result of `models.encoder.embed`.

    Args:
      params: tree of `transformer.by_layer`.
      tokens: int32 [B, T], with the special tokens; any ids where not valid.
      valid: bool [B, T].
      cfg: the model, with its pooling.
      how: implementations, and the type of the activations.

    Returns:
      "vectors": float32 [B, D].
    """
    hidden = _hidden(params, tokens, valid, None, cfg, how)
    return {"vectors": encoder.vectors(hidden, valid, cfg=cfg)}


def scores(
    params: dict[str, Any],
    tokens: jax.Array,
    valid: jax.Array,
    token_types: jax.Array,
    *,
    cfg: EncoderConfig,
    how: How = HOW,
) -> dict[str, jax.Array]:
    """What `models.encoder.classify` gives: "scores", float32 [B, C]; arguments as in `vectors`.

    Args:
      params: tree of `transformer.by_layer`.
      tokens: see `vectors`.
      valid: see `vectors`.
      token_types: int32 [B, T], which text of a pair each token is of.
      cfg: the model, with its classes.
      how: see `vectors`.
    """
    hidden = _hidden(params, tokens, valid, token_types, cfg, how)
    return {"scores": encoder.scores(params, hidden, valid)}


def _hidden(params, tokens, valid, token_types, cfg, how):
    x = encoder.embeddings(params, tokens, cfg=cfg, token_types=token_types, how=how)
    mask = jnp.broadcast_to(valid[:, None], (*tokens.shape, tokens.shape[1]))
    none = (None,) * len(cfg.layers)
    layers, positions = params["layers"], jnp.zeros(tokens.shape, jnp.int32)  # no layer asks
    return transformer.unrolled(layers, x, positions, lambda _: mask, none, cfg=cfg, how=how)[0]


def bundle(
    params: dict[str, Any],
    cfg: EncoderConfig,
    *,
    profiles: Sequence[int] = (128,),
    batch: Any = 1,
    how: How = HOW,
    texts: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> Bundle:
    """An encoder's programs, one for each length: vectors, or scores where no pooling is known.

    Args:
      params: tree of `encoder.spec(cfg)`.
      cfg: the model.
      profiles: lengths T, each a static graph.
      batch: B, a number, or a symbolic dimension of jax.export.
      how: implementations in the exported functions, and the type of the activations.
      texts: ids of real texts, none longer than the shortest profile, to compare on.
      seed: of the random inputs.

    Raises:
      InputError: a length that the model cannot have, or neither pooling nor classes.
    """
    profiles = tuple(sorted(set(profiles)))
    check_profiles(cfg.max_length, profiles)
    name, function = ("vectors", vectors) if cfg.pooling or not cfg.classes else ("scores", scores)
    if name == "vectors":
        check_pooling(cfg)

    def bound(how: How) -> Any:
        return lambda params, **inputs: function(params, **inputs, cfg=cfg, how=how)

    rows = batch if isinstance(batch, int) else 2
    rng = np.random.default_rng(seed)
    programs = []
    for length in profiles:
        dtypes = {"tokens": jnp.int32, "valid": jnp.bool_}
        dtypes |= {"token_types": jnp.int32} if name == "scores" else {}
        samples = {"random": _sample(cfg, rng, rows, length, ())}
        samples |= {"real": _sample(cfg, rng, rows, length, texts)} if len(texts) else {}
        programs.append(
            Program(
                f"{name}_{length}",
                bound(how),
                {n: jax.ShapeDtypeStruct((batch, length), dtype) for n, dtype in dtypes.items()},
                jax.jit(bound(dataclasses.replace(how, impl=None))),
                {kind: {n: arrays[n] for n in dtypes} for kind, arrays in samples.items()},
            )
        )
    facts = {
        "kind": "encoder",
        "vocab": cfg.vocab,
        "width": cfg.width,
        "profiles": list(profiles),
        **({"classes": cfg.classes} if name == "scores" else {}),
        **({"pooling": str(cfg.pooling), "normalized": int(cfg.normalize)} if cfg.pooling else {}),
    }
    unused = () if name == "scores" else ("pooler", "classifier")
    used = {branch: tree for branch, tree in params.items() if branch not in unused}
    return Bundle(transformer.by_layer(jax.tree.map(np.asarray, used)), tuple(programs), facts)


def _sample(
    cfg: EncoderConfig,
    rng: np.random.Generator,
    rows: int,
    length: int,
    texts: Sequence[Sequence[int]],
) -> dict[str, np.ndarray]:
    """Random ids, of which the first rows may begin with real texts; the rest is not valid."""
    tokens = rng.integers(0, cfg.vocab, (rows, length)).astype(np.int32)
    sizes = rng.integers(max(1, length // 2), length + 1, rows)
    for row, ids in zip(range(rows), texts, strict=False):
        tokens[row, : len(ids)], sizes[row] = ids, len(ids)
    slots = np.arange(length)
    types = (slots >= sizes[:, None] // 2).astype(np.int32) % cfg.token_types
    return {"tokens": tokens, "valid": slots < sizes[:, None], "token_types": types}
