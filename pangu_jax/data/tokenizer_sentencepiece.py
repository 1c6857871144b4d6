"""SentencePiece's tokenizer.model converted to a tokenizers.Tokenizer with identical ids."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from pangu_jax.core.errors import InputError

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of pieces
UNIGRAM, BPE = 1, 2  # kinds of models
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")


def from_sentencepiece(file: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Reads a tokenizer.model, with the tokens that tokenizer_config.json adds.

    Every stretch of text between added tokens gets the ids of SentencePiece's own `encode`, which
    is how tokenizers that hold such a file use it. Where the configuration says `legacy: false` (or
    names a Llama tokenizer and says nothing), only the first stretch begins with a dummy space.
    A model's own rules for rewriting characters are the library's, as in transformers: letters
    under combining marks, and syllables in single parts, may be rewritten differently.

    Args:
      file: the tokenizer.model.
      config: content of tokenizer_config.json; {} if there is none.

    Raises:
      InputError: no SentencePiece model, or one whose ids cannot be given exactly; says why.
    """
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except DecodeError as error:
        raise InputError(f"{file} is not a SentencePiece model: {error}") from error
    return from_proto(model, config, file)


def from_proto(model: Any, config: Mapping[str, Any], file: Path) -> tokenizers.Tokenizer:
    """Converts a model that is already parsed, as `from_sentencepiece`.

    Args:
      model: a SentencePiece ModelProto.
      config: content of tokenizer_config.json; {} if there is none.
      file: the model's origin, named in errors.

    Raises:
      InputError: its ids cannot be given exactly; says why.
    """
    if not model.pieces:
        raise InputError(f"{file} is not a SentencePiece model: it holds no pieces")
    _check(model, file)
    added = _added(config, model, file)
    names = [added[i].content if i in added else p.piece for i, p in enumerate(model.pieces)]
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"{file} and the added tokens beside it name {twice!r} twice")
    prefix = _prefix(model, config)
    try:
        inner = tokenizers.Tokenizer(_model(model, names))
        inner.normalizer = _normalizer(model, prefix)
        inner.pre_tokenizer = _pre_tokenizer(model, names, prefix)
        inner.decoder = _decoder(prefix)
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{file} is not a whole SentencePiece model: {error}") from error
    for number, token in sorted(added.items()):
        inner.add_tokens([token])
        if inner.token_to_id(token.content) != number:
            raise InputError(
                f"{file.parent} gives the added token {token.content!r} the id {number}, but "
                f"{inner.token_to_id(token.content)} is the next free one"
            )
    _check_symbols(model, inner, file)
    return inner


def _check(model: Any, file: Path) -> None:
    """Refuses options of SentencePiece that the tokenizers library cannot reproduce."""
    trainer, rules = model.trainer_spec, model.normalizer_spec
    wrong = {
        "is of a kind other than BPE and unigram": trainer.model_type not in (UNIGRAM, BPE),
        "marks words by a space behind them": trainer.treat_whitespace_as_suffix,
        "leaves spaces as they are": not rules.escape_whitespaces,
        "holds unused pieces": any(p.type == UNUSED for p in model.pieces),
        "has no piece for unknown characters": all(p.type != UNKNOWN for p in model.pieces),
        # A text's <0x41> would be that byte, if its characters are not pieces.
        "falls back to bytes for ASCII signs": trainer.model_type == UNIGRAM
        and trainer.byte_fallback
        and not set("<0123456789xABCDEF>") <= {p.piece for p in model.pieces},
    }
    for what, found in wrong.items():
        if found:
            raise InputError(f"{file} {what}, which cannot be read exactly; give a tokenizer.json")


def _check_symbols(model: Any, inner: tokenizers.Tokenizer, file: Path) -> None:
    """SentencePiece spares its own symbols when it rewrites characters; the library does not."""
    for piece in model.pieces:
        if piece.type == USER and model.normalizer_spec.precompiled_charsmap:
            changed = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
            if changed.normalize_str(piece.piece) != piece.piece:
                raise InputError(
                    f"{file} has the symbol {piece.piece!r}, which its own rules for characters "
                    "change; that cannot be read exactly; give a tokenizer.json"
                )


def _added(config: Mapping[str, Any], model: Any, file: Path) -> dict[int, AddedToken]:
    """{id: token} of the tokens that are split off a text before SentencePiece sees it."""
    found = {}
    for number, piece in enumerate(model.pieces):
        if piece.type in (UNKNOWN, CONTROL):
            found[number] = AddedToken(piece.piece, special=True, normalized=False)
    listed = config.get("added_tokens_decoder", {})
    if not isinstance(listed, dict):
        raise InputError(f"{file.parent / 'tokenizer_config.json'}: added_tokens_decoder must be "
                         f"an object, got {listed!r:.40}")  # fmt: skip
    for number, values in listed.items():
        found[_number(number, file)] = _token(values, number, file)
    number = max([len(model.pieces) - 1, *found])
    known = {t.content for t in found.values()} | {p.piece for p in model.pieces}
    for name in _named(config):
        if name not in known:
            known.add(name)
            number += 1
            found[number] = AddedToken(name, special=True, normalized=False)
    ids = {p.piece: i for i, p in enumerate(model.pieces)}
    for name in _named(config):  # a piece that the configuration makes special
        if name in ids and ids[name] not in found:
            found[ids[name]] = AddedToken(name, special=True, normalized=False)
    return found


def _named(config: Mapping[str, Any]) -> list[str]:
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    values = [config.get(name) for name in NAMED] + (more if isinstance(more, list) else [])
    texts = [v.get("content") if isinstance(v, dict) else v for v in values]
    return [t for t in texts if isinstance(t, str) and t]


def _number(text: str, file: Path) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise InputError(f"{file.parent / 'tokenizer_config.json'}: {text!r:.40} is no id of a token")


def _token(values: Any, number: str, file: Path) -> AddedToken:
    content = values.get("content") if isinstance(values, dict) else None
    if not isinstance(content, str) or not content:
        raise InputError(
            f"{file.parent / 'tokenizer_config.json'}: added_tokens_decoder[{number!r}] needs a "
            f"content text, got {values!r:.60}"
        )
    flags = {n: values.get(n) is True for n in ("special", "lstrip", "rstrip", "single_word")}
    return AddedToken(content, normalized=False, **flags)


def _model(model: Any, names: Sequence[str]) -> models.Model:
    kinds = [p.type for p in model.pieces]
    unknown, fallback = kinds.index(UNKNOWN), model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == BPE:
        vocab = {name: number for number, name in enumerate(names)}
        return models.BPE(
            vocab,
            _merges(model, names),
            unk_token=names[unknown],
            fuse_unk=True,
            byte_fallback=fallback,
            ignore_merges=USER in kinds,  # a symbol, cut out below, is a token without merges
        )
    # Entries that are not text must never be the best; a symbol, split off below, always.
    low = 100 * (min((p.score for p in model.pieces if p.type == NORMAL), default=0.0) - 10)
    scores = [{NORMAL: p.score, USER: 0.0}.get(p.type, low) for p in model.pieces]
    return models.Unigram(list(zip(names, scores, strict=True)), unknown, fallback)


def _merges(model: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a third, the best score first."""
    normal = {
        name: (-p.score, number)
        for number, (name, p) in enumerate(zip(names, model.pieces, strict=True))
        if p.type == NORMAL
    }
    found = [
        (*rank, name[:cut], name[cut:])
        for name, rank in normal.items()
        for cut in range(1, len(name))
        if name[:cut] in normal and name[cut:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _prefix(model: Any, config: Mapping[str, Any]) -> str:
    """When a stretch of text begins with a dummy space: "always", "first" or "never"."""
    llama = config.get("tokenizer_class") in LLAMA
    if not model.normalizer_spec.add_dummy_prefix:
        return "never"
    if llama and config.get("add_prefix_space") is False:
        return "never"
    return "always" if config.get("legacy", not llama) else "first"


def _normalizer(model: Any, prefix: str) -> normalizers.Normalizer:
    rules = model.normalizer_spec
    found: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        found.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        found.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
        found.append(normalizers.Replace(Regex(" {2,}"), " "))
    found.append(normalizers.Replace(" ", SPACE))
    if prefix == "always":
        found.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(found)


def _pre_tokenizer(model: Any, names: Sequence[str], prefix: str) -> Any:
    """The dummy space of the first stretch, and cuts at symbols, which are never merged."""
    found: list[pre_tokenizers.PreTokenizer] = []
    if prefix == "first":
        found.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
    symbols = [n for n, p in zip(names, model.pieces, strict=True) if p.type == USER]
    if symbols:
        longest = sorted(symbols, key=len, reverse=True)
        pattern = Regex("|".join(re.escape(symbol) for symbol in longest))
        found.append(pre_tokenizers.Split(pattern, behavior="isolated"))
    if symbols and model.trainer_spec.byte_fallback:
        # What is cut out whole is looked up whole, and a text's <0x41> is not that byte.
        byte = Regex(r"\A<(?=0x[0-9A-F]{2}>\z)")
        found.append(pre_tokenizers.Split(byte, behavior="isolated"))
    return pre_tokenizers.Sequence(found)


def _decoder(prefix: str) -> Any:
    found = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix != "never":
        found.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(found)
