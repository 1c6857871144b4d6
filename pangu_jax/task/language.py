"""Language models and text encoders: generate, measure perplexity, embed."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.checkpoint.open import left_out
from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import tokenize
from pangu_jax.data.text import Document, documents
from pangu_jax.data.tokenizer import Tokenizer, check_vocabulary, text_prompt
from pangu_jax.decode.engine import check_max_new_tokens
from pangu_jax.decode.generate import generate as continue_ids
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig
from pangu_jax.eval.embedding import embed as embed_texts
from pangu_jax.eval.perplexity import Perplexity, measure
from pangu_jax.eval.text_encoder import KINDS, TextEncoder, of_model
from pangu_jax.models.pooling_config import Attention, Pooling
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How
from pangu_jax.task.model import Dtype, Model, check_dtype, expect, tokenizer_of
from pangu_jax.task.soft_thinking import preparation

Show = Callable[..., None]


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = SamplingConfig.temperature,
    top_k: int = SamplingConfig.top_k,
    top_p: float = SamplingConfig.top_p,
    seed: int = 0,
    batch: int = 32,
    dtype: Dtype = "float32",
    soft_thinking: bool = False,
    think_end: str | None = None,
    soft: SoftThinkingConfig = SoftThinkingConfig(),
) -> list[str]:
    """Continues every prompt, and returns the continuations, as `pangu-jax generate` does.

    Warns of a run of `latent train` whose thoughts, pauses or gap are left out.

        >>> pj.generate(m, ["Once upon a time", "The"], max_new_tokens=20, temperature=0.8)

    Args:
      model: a language model.
      prompts: texts; an empty one starts a new document.
      max_new_tokens: maximum number of new tokens for each.
      temperature: divides the logits; 0 is greedy decoding.
      top_k: sample from the k most likely tokens; 0 for all.
      top_p: sample from the smallest set of tokens whose total probability reaches it; 1 for all.
      seed: of the sampling; a prompt's text does not depend on the other prompts.
      batch: prompts decoded at once.
      dtype: type of activations and cache.
      soft_thinking: whether it thinks in mixtures of tokens before it writes.
      think_end: text that follows the thought; None is the tokenizer's </think> or [unused17].
      soft: settings of soft thinking.

    Raises:
      InputError: another kind of model, one without a tokenizer, or options that make no sense.
    """
    expect(model, "decoder")
    check_dtype(dtype)
    check_size("batch", batch)
    check_max_new_tokens(max_new_tokens)
    if not soft_thinking and (think_end is not None or soft != SoftThinkingConfig()):
        raise InputError("think_end and soft want soft_thinking=True")
    for note in left_out(model.path) if model.path else ():
        warnings.warn(note, stacklevel=2)
    tokenizer, prompts = tokenizer_of(model), _texts(prompts, "prompts")
    ids = [text_prompt(prompt, tokenizer) for prompt in prompts]
    for row in ids:
        check_vocabulary(row, tokenizer, model.cfg.vocab)
    params, how, key = by_layer(model.params), How(dtype=dtype), jax.random.key(seed)
    thinks = soft if soft_thinking else None
    prepare, _ = preparation(params, model.cfg, tokenizer, thinks, think_end, how)
    found = continue_ids(
        params,
        [prepare(row, jax.random.fold_in(key, n))[0] for n, row in enumerate(ids)],
        cfg=model.cfg,
        max_new_tokens=max_new_tokens,
        sampling=SamplingConfig(temperature, top_k, top_p),
        stop_ids=tokenizer.eos_ids,
        key=key,
        slots=batch,
        how=how,
    )
    return [
        _continuation(tokenizer.encode(prompt), row, tokenizer)
        for prompt, row in zip(prompts, found.rows(), strict=True)
    ]


def evaluate_text(
    model: Model,
    data: str | Path | Sequence[str],
    *,
    length: int = 512,
    stride: int | None = None,
    batch: int = 8,
    max_tokens: int | None = None,
    field: str = "text",
    dtype: Dtype = "float32",
) -> dict[str, Any]:
    """Perplexity and bits per byte of a language model on text; see `evaluate`."""
    expect(model, "decoder")
    check_dtype(dtype)
    if isinstance(data, str | Path):
        found: Iterable[Document] = documents(data, field=field)
    else:
        found = [Document(str(row), text) for row, text in enumerate(_texts(data, "data"))]
    return as_dict(
        perplexity(
            model.params,
            found,
            cfg=model.cfg,
            tokenizer=tokenizer_of(model),
            length=length,
            stride=stride,
            batch=batch,
            max_tokens=max_tokens,
            how=How(dtype=dtype),
        )
    )


def perplexity(
    params: Any,
    found: Iterable[Document],
    *,
    cfg: Any,
    tokenizer: Tokenizer,
    progress: Show = lambda *_: None,
    **options: Any,
) -> Perplexity:
    """Perplexity on documents, each read as a prompt is.

    Args:
      params: of a language model.
      found: the documents.
      cfg: the model.
      tokenizer: its tokenizer.
      progress: called with the activity, the amount done, and the total if it is known.
      **options: of `eval.perplexity.measure`.

    Raises:
      InputError: as in `measure`, or ids that the model lacks.
    """
    tokens = tokenize(
        found, tokenizer, as_prompts=True, progress=lambda done: progress("reading, bytes", done)
    )
    check_vocabulary(tokens.ids, tokenizer, cfg.vocab)
    tell = partial(progress, "measuring, windows")
    return measure(params, tokens, cfg=cfg, progress=tell, **options)


def as_dict(found: Perplexity) -> dict[str, Any]:
    """A measurement as plain values, with derived ones."""
    return {
        **dataclasses.asdict(found),
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "protocol": found.protocol,
    }


def embed(
    model: Model,
    texts: Sequence[str],
    *,
    pooling: Pooling | None = None,
    attention: Attention | None = None,
    pool_prefix: bool | None = None,
    prefix: str | None = None,
    batch: int = 32,
    max_length: int | None = None,
    dtype: Dtype = "float32",
) -> np.ndarray:
    """One vector per text, float32 [texts, D], as in the output of `pangu-jax embed`.

        >>> vectors = pj.embed(pj.load("all-MiniLM-L6-v2"), ["a question", "a passage"])
        >>> vectors @ vectors.T
        >>> pj.embed(pj.load("smollm2"), ["a question"], pooling="last")

    Args:
      model: an encoder, such as those of sentence-transformers, or a decoder.
      texts: the texts.
      pooling: how hidden states become a vector; None takes the folder's.
      attention: of a decoder, causal or bidirectional; None takes the folder's.
      pool_prefix: of a decoder, whether the prefix's tokens are pooled too; None takes the
        folder's.
      prefix: text put before every text; None takes the folder's.
      batch: texts computed at once.
      max_length: tokens that a text is truncated to; None takes the folder's.
      dtype: type of the activations.

    Raises:
      InputError: another kind of model, unspecified pooling, no tokenizer, or an option that does
        not apply to this kind of model.
    """
    check_dtype(dtype)
    opened = text_encoder(
        model,
        pooling=pooling,
        attention=attention,
        pool_prefix=pool_prefix,
        prefix=prefix,
        max_length=max_length,
        how=How(dtype=dtype),
    )
    return embed_texts(
        opened.params,
        _texts(texts, "texts"),
        cfg=opened.cfg,
        tokenizer=opened.tokenizer,
        batch=batch,
        max_length=max_length,
        how=opened.how,
    ).vectors


def text_encoder(model: Model, **options: Any) -> TextEncoder:
    """A model as an object with `encode`, as users of sentence-transformers and MTEB know it.

    Args:
      model: an encoder or a decoder.
      **options: `pooling`, `attention`, `pool_prefix`, `prefix`, `max_length` and `how` of
        `eval.text_encoder.of_model`.

    Raises:
      InputError: another kind of model, no tokenizer, or see `of_model`.
    """
    expect(model, *KINDS)
    tokenizer = tokenizer_of(model)
    return of_model(model.params, model.cfg, tokenizer, model.path or "the model", **options)


def _texts(given: Any, name: str) -> list[str]:
    """Texts as a list; a single one would be read letter by letter."""
    found = [] if isinstance(given, str) else list(given)
    if isinstance(given, str) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{name} must be a list of texts, got {given!r:.60}")
    return found


def _continuation(prompt: list[int], row: list[int], tokenizer: Tokenizer) -> str:
    """The text after the prompt: what ids mean may depend on those before, such as a space."""
    ids = row[:-1] if row and row[-1] in tokenizer.eos_ids else row
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *ids])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)
