"""The tokenizer described by a GGUF file's metadata, as Hugging Face files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer_files import CONFIG, json_file, with_prefix
from pangu_jax.data.tokenizer_save import FAST, GENERATION
from pangu_jax.data.tokenizer_sentencepiece import BPE, BYTE, CONTROL, UNKNOWN, USER, from_proto

PREFIX = "tokenizer.ggml."

# How a text is cut before pairs are merged, by llama.cpp's names; each is the expression of the
# tokenizer.json that such models were published with.
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _words(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_LLAMA3, _QWEN2 = _split(_words(r"\p{N}{1,3}")), _split(_words(r"\p{N}"))
CUTS = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def tokenizer_files(fields: Mapping[str, Any], file: Path) -> dict[str, bytes]:
    """{name: content} of the tokenizer's files for a folder beside the model.

    tokenizer.json gives the ids of the tokenizer that the model was published with, and puts the
    begin of text before a text where the metadata asks for it; tokenizer_config.json has the chat
    template; generation_config.json has the begin and the ends of text.

    Args:
      fields: the metadata, of which names that begin with "tokenizer." are read.
      file: its origin, named in errors.

    Raises:
      InputError: an unsupported kind of tokenizer, or inconsistent metadata.
    """
    tokens = _list(fields, "tokens", str, file)
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise InputError(f"{file} names the token {twice!r:.40} twice")
    kinds = _list(fields, "token_type", int, file, len(tokens))
    kind, cut = (fields.get(PREFIX + name) for name in ("model", "pre"))
    if kind == "llama":
        inner = _sentencepiece(fields, tokens, kinds, file)
    elif kind == "gpt2" and cut in CUTS:
        inner = _byte_pairs(fields, tokens, kinds, cut, file)
    else:
        raise InputError(
            f"{file} has a tokenizer of kind {kind!r:.40}, cut {cut!r:.40}, which is not read; "
            f"llama is, and gpt2 with the cuts {', '.join(CUTS)}"
        )
    named = {name: _id(fields, name, tokens, file) for name in ("bos", "eos", "eot")}
    for name, old in (("unk", "unknown"), ("pad", "padding")):
        named[name] = _id(fields, old, tokens, file)
    begins = fields.get(PREFIX + "add_bos_token", kind == "llama" or CUTS.get(cut) is _LLAMA3)
    if begins and named["bos"] is not None:
        inner = with_prefix(inner, [named["bos"]])
    config = {f"{n}_token": tokens[i] for n, i in named.items() if i is not None and n != "eot"}
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    config |= {"clean_up_tokenization_spaces": False, "tokenizer_class": FAST}
    ends = [named[n] for n in ("eos", "eot") if named[n] is not None]
    generation = {"bos_token_id": named["bos"], "eos_token_id": list(dict.fromkeys(ends)) or None}
    return {
        "tokenizer.json": inner.to_str(pretty=True).encode(),
        CONFIG: json_file(config),
        GENERATION: json_file(
            {name: value for name, value in generation.items() if value is not None}
        ),
    }


def _byte_pairs(
    fields: Mapping[str, Any], tokens: list[str], kinds: list[int], cut: str, file: Path
) -> tokenizers.Tokenizer:
    pairs = [tuple(pair.split(" ")) for pair in _list(fields, "merges", str, file)]
    vocab = {token: number for number, token in enumerate(tokens)}
    whole = CUTS[cut] is _LLAMA3  # a cut that is a token stays whole, whatever the merges
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=whole))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{file}: its merges do not fit its tokens: {error}") from error
    inner.pre_tokenizer = CUTS[cut]
    if CUTS[cut] is _QWEN2:
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER) and token
    ]
    inner.add_tokens(added)
    return inner


def _sentencepiece(
    fields: Mapping[str, Any], tokens: list[str], kinds: list[int], file: Path
) -> tokenizers.Tokenizer:
    model = sentencepiece_model_pb2.ModelProto()
    scores = _list(fields, "scores", float, file, len(tokens))
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind not in range(1, 7):
            raise InputError(f"{file} gives the token {token!r:.40} the kind {kind}")
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = BPE
    model.trainer_spec.byte_fallback = BYTE in kinds
    if UNKNOWN not in kinds:
        number = _id(fields, "unknown", tokens, file)
        model.pieces[0 if number is None else number].type = UNKNOWN
    rules = model.normalizer_spec
    rules.add_dummy_prefix = bool(fields.get(PREFIX + "add_space_prefix", True))
    rules.remove_extra_whitespaces = bool(fields.get(PREFIX + "remove_extra_whitespaces", False))
    rules.escape_whitespaces = True
    return from_proto(model, {}, file)


def _list(
    fields: Mapping[str, Any], name: str, kind: type, file: Path, length: int | None = None
) -> list[Any]:
    value = fields.get(PREFIX + name)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise InputError(f"{file} lacks the list {PREFIX}{name}")
    if length is not None and len(value) != length:
        raise InputError(f"{file}: {PREFIX}{name} is of {len(value)} tokens of {length}")
    return value


def _id(fields: Mapping[str, Any], name: str, tokens: list[str], file: Path) -> int | None:
    number = fields.get(f"{PREFIX}{name}_token_id")
    if number is None or (type(number) is int and 0 <= number < len(tokens)):
        return number
    raise InputError(f"{file}: {PREFIX}{name}_token_id is {number!r:.40} of {len(tokens)} tokens")
