"""A text encoder with the interface of sentence-transformers and MTEB: an object with `encode`."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import checkpoint_format, open_checkpoint
from pangu_jax.core.config import check_choice
from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import Tokenizer, load_tokenizer
from pangu_jax.eval.embedding import Config, cut_length, embed
from pangu_jax.models import embedder
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.models.pooling_config import Attention, Pooling
from pangu_jax.nn.how import HOW, How

KINDS = ("encoder", "embedder", "decoder")

# Options of `encode` that are of no effect, and the only values of some that could be.
ALONE = {"device", "task_name", "task_metadata", "hf_split", "hf_subset", "chunk_size"}
USUAL = {
    "convert_to_tensor": False,
    "output_value": "sentence_embedding",
    "precision": "float32",
    "truncate_dim": None,
    "pool": None,
}

Texts = str | Sequence[str] | Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Encodes texts as vectors.

    Attributes:
      params: tree of the model's spec.
      cfg: the model; its prefix is the prompt where none is asked for.
      tokenizer: the model's.
      prompts: what may be put before texts, by name.
      max_seq_length: tokens that a text is cut to; None is what the model says.
      how: layout, implementations, and the type of activations.
      mteb_model_meta: how MTEB 2 describes the model; None where it is not used.
    """

    params: dict[str, Any]
    cfg: Config
    tokenizer: Tokenizer
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_seq_length: int | None = None
    how: How = HOW
    mteb_model_meta: Any = None

    def encode(
        self,
        sentences: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        prompt_type: Any = None,
        **others: Any,
    ) -> np.ndarray:
        """The vectors of texts, as `SentenceTransformer.encode` gives them.

        Args:
          sentences: texts, or one; or, as MTEB hands them over, batches that have a list "text".
          prompt_name: which of `prompts` is put before each.
          prompt: what is put before each, whatever the name; "" is nothing.
          batch_size: texts computed at once.
          show_progress_bar: whether a bar on the terminal shows how far it is.
          convert_to_numpy: of no effect, as arrays are numpy's.
          convert_to_tensor: must be False.
          normalize_embeddings: whether vectors are scaled to length 1 though the model does not
            say so.
          prompt_type: MTEB's "query" or "document" (or "passage"), which names the prompt where
            nothing else does and `prompts` has one.
          others: what MTEB says of its task, and a device, of no effect; and what else
            sentence-transformers has, as long as it asks for nothing else than float32 vectors.

        Returns:
          float32 [N, D], in the texts' order; [D] of a text by itself.

        Raises:
          InputError: there is no prompt of that name, something else is asked for, or see `embed`.
        """
        del convert_to_numpy
        _check_others({"convert_to_tensor": convert_to_tensor, **others})
        texts = [sentences] if isinstance(sentences, str) else _texts(sentences)
        before = self._prompt(prompt_name, prompt, prompt_type)
        if not texts:
            return np.zeros((0, self.cfg.width), np.float32)
        normalize = self.cfg.normalize or normalize_embeddings
        with Progress(transient=True, disable=not show_progress_bar) as bar:
            task = bar.add_task("texts", total=len(texts))
            found = embed(
                self.params,
                texts,
                cfg=dataclasses.replace(self.cfg, normalize=normalize),
                tokenizer=self.tokenizer,
                prefixes=[before] * len(texts),
                batch=batch_size,
                max_length=self.max_seq_length,
                how=self.how,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            ).vectors
        return found[0] if isinstance(sentences, str) else found

    def encode_query(self, sentences: Texts, **options: Any) -> np.ndarray:
        """`encode` with the prompt "query", where there is one."""
        return self.encode(sentences, **{"prompt_type": "query", **options})

    def encode_document(self, sentences: Texts, **options: Any) -> np.ndarray:
        """`encode` with the prompt "document", where there is one."""
        return self.encode(sentences, **{"prompt_type": "document", **options})

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Cosines of all vectors [N, D] and all others [M, D]: [N, M]."""
        return _unit(first) @ _unit(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> np.ndarray:
        """Cosines of vectors [N, D] and the others [N, D] at their places: [N]."""
        return (_unit(first) * _unit(second)).sum(-1)

    def get_sentence_embedding_dimension(self) -> int:
        """D, width of the vectors."""
        return self.cfg.width

    def _prompt(self, name: str | None, prompt: str | None, kind: Any) -> str:
        if prompt is not None:
            return prompt
        if name is not None:
            check_choice("prompt_name", name, self.prompts)
            return self.prompts[name]
        kind = getattr(kind, "value", kind)
        aliases = {"document": ("document", "passage"), "passage": ("passage", "document")}
        for known in aliases.get(kind, (kind,)):
            if known in self.prompts:
                return self.prompts[known]
        return self.cfg.prefix


def open_text_encoder(
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    attention: Attention | None = None,
    pool_prefix: bool | None = None,
    prefix: str | None = None,
    max_length: int | None = None,
    tokenizer: str | Path | None = None,
    how: How = HOW,
    by: str = "this call",
) -> TextEncoder:
    """Opens a text-embedding model: an encoder, an embedder, or any decoder.

    Args:
      path: a run folder, or a folder in the Hugging Face layout.
      pooling: which hidden states make a vector; None is what the folder says.
      attention: whether tokens see no later ones or all; None is what the folder says.
      pool_prefix: whether the prefix's tokens are pooled too; None is what the folder says.
      prefix: what is put before texts; None is what the folder says.
      max_length: tokens that a text is cut to; None is what the folder says.
      tokenizer: a tokenizer.json; None takes the checkpoint's own.
      how: layout, implementations, and the type of activations.
      by: what asks, for errors.

    Raises:
      InputError: the folder holds none of these or cannot be read, nobody says how it pools, or an
        option is not for its kind of model.
    """
    params, cfg, found = open_checkpoint(path, kind=KINDS, by=by, layout=how.layout)
    read = load_tokenizer(tokenizer or found, checkpoint=path)
    return of_model(
        params,
        cfg,
        read,
        path,
        pooling=pooling,
        attention=attention,
        pool_prefix=pool_prefix,
        prefix=prefix,
        max_length=max_length,
        how=how,
    )


def of_model(
    params: dict[str, Any],
    cfg: Config | DecoderConfig,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    attention: Attention | None = None,
    pool_prefix: bool | None = None,
    prefix: str | None = None,
    max_length: int | None = None,
    how: How = HOW,
) -> TextEncoder:
    """What `open_text_encoder` gives, of a model that was read.

    Args:
      params: tree of the model's spec.
      cfg: the model.
      tokenizer: its tokenizer.
      path: where it was read from, where a folder may say how it pools; and for errors.
      pooling: as in `open_text_encoder`, and so are the others.
      attention: whether tokens see no later ones or all.
      pool_prefix: whether the prefix's tokens are pooled too.
      prefix: what is put before texts.
      max_length: tokens that a text is cut to.
      how: layout, implementations, and the type of activations.

    Raises:
      InputError: nobody says how it pools, or an option is not for its kind of model.
    """
    folder = (
        Path(path)
        if (Path(path) / hf.CONFIG).is_file() and checkpoint_format(path) == "hf"
        else None
    )
    if isinstance(cfg, DecoderConfig):
        params, cfg = embedder.from_decoder(params, cfg)
        cfg = cfg if folder is None else hf.read_pooling(folder, cfg)
    if attention is not None:
        params, cfg = _seeing(params, cfg, path, attention)
    cfg = configured(cfg, path, pooling=pooling, pool_prefix=pool_prefix, prefix=prefix)
    cut_length(cfg, max_length)
    prompts = {} if folder is None else hf.read_prompts(folder)
    return TextEncoder(params, cfg, tokenizer, prompts, max_length, how)


def _seeing(
    params: dict[str, Any], cfg: Config, path: str | Path, attention: Attention
) -> tuple[dict[str, Any], Config]:
    """The model with that attention, if it can have it."""
    own = "causal" if isinstance(cfg, EmbedderConfig) and cfg.causal else "bidirectional"
    if attention == own:
        return params, cfg
    if isinstance(cfg, EmbedderConfig) and attention == "bidirectional":
        return embedder.bidirectional(params, cfg)
    raise InputError(f"{path} holds a model whose attention is {own}, not {attention}")


def configured(
    cfg: Config,
    path: str | Path,
    *,
    pooling: Pooling | None = None,
    pool_prefix: bool | None = None,
    prefix: str | None = None,
) -> Config:
    """The model with the given options in place of its folder's.

    Raises:
      InputError: nobody said how it pools, or an encoder is not to pool its prefix.
    """
    if pooling is None and cfg.pooling is None:
        raise InputError(
            f"{path} does not say how hidden states make a vector (modules.json of "
            "sentence-transformers would); give the option pooling: cls, mean, "
            "weighted, last or max"
        )
    if pool_prefix is not None and isinstance(cfg, EncoderConfig):
        raise InputError(f"whether prefixes are pooled is for decoders, {path} holds an encoder")
    changes = {"pooling": pooling, "prefix": prefix, "pool_prefix": pool_prefix}
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(cfg, **changes)


def _texts(sentences: Sequence[str] | Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts of a list, of documents that may have a title, or of batches."""
    found: list[str] = []
    for item in sentences:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item["text"], str):
            found.append(f"{item.get('title') or ''} {item['text']}".strip())
        else:
            found += item["text"]
    return found


def _check_others(others: Mapping[str, Any]) -> None:
    """Checks that options that are not named change nothing here.

    Raises:
      InputError: one would, or is not known.
    """
    for name, value in others.items():
        if name not in ALONE and (name not in USUAL or value != USUAL[name]):
            raise InputError(f"encode does not support {name} {value!r:.40}")


def _unit(vectors: Any) -> np.ndarray:
    found = np.atleast_2d(np.asarray(vectors, np.float32))
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
