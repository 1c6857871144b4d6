"""A llama2.c checkpoint (stories260K and its kin) in the Hugging Face layout.

    python tools/convert_llama2c.py stories260K.bin tok512.bin OUT

Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
generation_config.json. The file of weights is llama2.c's "version 0": seven int32, then float32.
Two things are not as they are elsewhere. Rotation turns neighboring channels there, halves here:
the rows of the query and key matrices are reordered, which changes no score. And llama2.c has no
list of merges: of all neighboring tokens whose joined text is in the vocabulary it merges the
pair with the best score, the leftmost of equals. `merges` says why a list can do the same.
"""

import argparse
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.hf import named, write_keys
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2, whatever llama2.c's file calls them
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # ids 3 to 258
HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def read_model(path: Path) -> tuple[dict, DecoderConfig]:
    """Parameters as numpy arrays in the storage form of `models.decoder`, and the configuration.

    Raises:
      InputError: the file cannot be read, its header makes no sense, or its length is another.
    """
    raw = _read(path)
    if len(raw) < 28:
        raise InputError(f"{path} is no llama2.c checkpoint: it has only {len(raw)} bytes")
    header = dict(zip(HEADER, np.frombuffer(raw, "<i4", 7).tolist(), strict=True))
    tied = header["vocab_size"] > 0  # a negative size says that a classifier follows
    header["vocab_size"] = abs(header["vocab_size"])
    if not _sensible(header) or max(header.values()) > len(raw):
        raise InputError(f"{path} is no llama2.c checkpoint of version 0: its header is {header}")
    width, hidden, layers, heads, groups, vocab, length = header.values()
    attention = AttentionConfig(groups, heads // groups, width // heads)
    layer = LayerConfig(attention, mlp=MlpConfig(hidden))
    cfg = DecoderConfig(vocab, width, (layer,) * layers, tied=tied, max_length=length)
    shapes = _shapes(cfg)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    if len(raw) != 28 + 4 * total:
        raise InputError(f"{path} has {len(raw)} bytes; its header asks for {28 + 4 * total}")
    parts = np.split(
        np.frombuffer(raw, "<f4", offset=28),
        np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1],
    )
    arrays = {n: a.reshape(s) for (n, s), a in zip(shapes.items(), parts, strict=True)}
    return _tree(arrays, cfg), cfg


def read_pieces(path: Path, vocab: int) -> list[tuple[bytes, float]]:
    """The text and score of every token, in the order of ids.

    Raises:
      InputError: the file cannot be read, ends early or late, or lacks the 256 byte tokens.
    """
    raw, pieces, at = _read(path), [], 4
    for number in range(vocab):
        if len(raw) < at + 8:
            raise InputError(f"{path} ends at token {number}, the model has {vocab}")
        score = float(np.frombuffer(raw, "<f4", 1, at)[0])
        size = int(np.frombuffer(raw, "<i4", 1, at + 4)[0])
        text = raw[at + 8 : at + 8 + size]
        if size < 0 or len(text) != size:
            raise InputError(f"{path} ends within token {number}")
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: token {number} is no UTF-8 text: {text!r}") from error
        pieces.append((text, score))
        at += 8 + size
    if at != len(raw):
        raise InputError(f"{path} has {len(raw) - at} bytes after the model's {vocab} tokens")
    if [text for text, _ in pieces[3:259]] != [name.encode() for name in BYTES]:
        raise InputError(f"{path} does not have the 256 byte tokens at ids 3 to 258")
    return pieces


def merges(pieces: list[tuple[bytes, float]]) -> list[tuple[str, str]]:
    """The pairs that llama2.c's encoder ever merges, best first.

    A token that appears in an encoding was made by merges inside its own characters alone, each the
    best of the text when it was made, so the best of those characters too: they are the merges of
    the token's text encoded by itself. So a token is always made from one and the same pair, other
    pairs that spell it are never chosen, and taking them off the list changes nothing. What is left
    has one pair per token; where no two tokens score alike, its order is the order of the scores.

    Raises:
      InputError: two tokens that can be made have the same score, or a byte token can take part,
        so that a list of merges cannot say which pair goes first.
    """
    texts = [text for text, _ in pieces]
    ids = {text: number for number, text in enumerate(texts)}
    found = {}
    for number, text in enumerate(texts[259:], start=259):
        characters = text.decode("utf-8")
        last = last_merge([ids.get(c.encode()) for c in characters], pieces, ids)
        if last is not None and last[2] == number:
            found[number] = last[:2]
    if len({pieces[number][1] for number in found}) != len(found):
        raise InputError("two tokens have the same score: no list of merges can break the tie")
    # llama2.c joins the printed names of tokens; the name of a byte token must not lead anywhere.
    for text in texts[259:]:
        if re.search(rb"<0x[0-9A-F]{2}>", text):
            raise InputError(f"the token {text!r} could be made of the name of a byte token")
    ranked = sorted(found, key=lambda number: -pieces[number][1])
    return [tuple(texts[side].decode("utf-8") for side in found[number]) for number in ranked]


def last_merge(
    tokens: list[int | None], pieces: list[tuple[bytes, float]], ids: dict[bytes, int]
) -> tuple[int, int, int] | None:
    """Merges as llama2.c does; (left, right, result) of the last merge if all became one token."""
    if None in tokens:  # a character that is spelled in bytes
        return None
    last = None
    while len(tokens) > 1:
        joined = [ids.get(pieces[a][0] + pieces[b][0]) for a, b in itertools.pairwise(tokens)]
        places = [place for place, result in enumerate(joined) if result is not None]
        if not places:
            return None
        place = max(places, key=lambda p: pieces[joined[p]][1])  # the first of equals
        last = (tokens[place], tokens[place + 1], joined[place])
        tokens = [*tokens[:place], joined[place], *tokens[place + 2 :]]
    return last


def make_tokenizer(pieces: list[tuple[bytes, float]]) -> Tokenizer:
    """A tokenizer that gives the ids of llama2.c's `encode`, and the text of its `decode`."""
    names = [*SPECIAL, *(text.decode("utf-8") for text, _ in pieces[3:])]
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names):
        raise InputError("two tokens have the same text")
    tokenizer = Tokenizer(
        models.BPE(vocab, merges(pieces), unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    # `normalized=False`: found in the text as given, before the space is put in front.
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in SPECIAL])
    return tokenizer


def convert(model: Path, vocabulary: Path, out: Path) -> None:
    """Writes the folder `out`, whole or not at all.

    Raises:
      InputError: a file cannot be read, or `out` exists and is not empty.
    """
    params, cfg = read_model(model)
    tokenizer = make_tokenizer(read_pieces(vocabulary, cfg.vocab))
    # llama2.c's models begin a text with token 1 and, having no other end, begin the next with it.
    begin_end = {"bos_token_id": 1, "eos_token_id": [1, 2]}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    companions = {
        "config.json": {**write_keys(cfg, named("llama")), "bos_token_id": 1, "eos_token_id": 2},
        "generation_config.json": {**begin_end, "max_length": cfg.max_length},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "clean_up_tokenization_spaces": False,
            "model_max_length": cfg.max_length,
        },
    }
    with tempfile.TemporaryDirectory() as source:
        for name, values in companions.items():
            Path(source, name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(str(Path(source, "tokenizer.json")))
        hf.save(params, cfg, out, family="llama", source=source)


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _sensible(header: dict[str, int]) -> bool:
    heads = header["n_heads"]
    return (
        min(header.values()) > 0
        and header["dim"] % (2 * heads) == 0
        and heads % header["n_kv_heads"] == 0
    )


def _shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The arrays of the file, in its order."""
    attention, layers, width = cfg.layers[0].attention, len(cfg.layers), cfg.width
    hidden, half = cfg.layers[0].mlp.width, attention.head_dim // 2
    keys = attention.kv_heads * attention.head_dim
    return {
        "embedding": (cfg.vocab, width),
        "attention_norm": (layers, width),
        "query": (layers, width, width),
        "key": (layers, keys, width),
        "value": (layers, keys, width),
        "out": (layers, width, width),
        "mlp_norm": (layers, width),
        "gate": (layers, hidden, width),
        "down": (layers, width, hidden),
        "up": (layers, hidden, width),
        "norm": (width,),
        "cosines": (cfg.max_length, half),  # the two tables of a former version are not used
        "sines": (cfg.max_length, half),
        **({} if cfg.tied else {"head": (cfg.vocab, width)}),
    }


def _tree(arrays: dict[str, np.ndarray], cfg: DecoderConfig) -> dict:
    attention, layers, width = cfg.layers[0].attention, len(cfg.layers), cfg.width
    groups, share, size = attention.kv_heads, attention.q_per_kv, attention.head_dim

    def into(name: str, *outputs: int, rotated: bool = False) -> dict:
        kernel = arrays[name].reshape(layers, *outputs, width)
        if rotated:  # channels 0 2 4 ... 1 3 5 ...
            kernel = np.concatenate([kernel[..., ::2, :], kernel[..., 1::2, :]], axis=-2)
        return {"kernel": np.moveaxis(kernel, -1, 1)}

    run = {
        "attention_norm": {"scale": arrays["attention_norm"]},
        "attention": {
            "query": into("query", groups, share, size, rotated=True),
            "key": into("key", groups, size, rotated=True),
            "value": into("value", groups, size),
            "out": {
                "kernel": np.moveaxis(
                    arrays["out"].reshape(layers, width, groups, share, size), 1, -1
                )
            },
        },
        "mlp_norm": {"scale": arrays["mlp_norm"]},
        "mlp": {
            "gate": into("gate", cfg.layers[0].mlp.width),
            "up": into("up", cfg.layers[0].mlp.width),
            "down": {"kernel": arrays["down"].swapaxes(1, 2)},
        },
    }
    tree = {"embed": {"table": arrays["embedding"]}, "runs": [run]}
    tree["norm"] = {"scale": arrays["norm"]}
    return tree if cfg.tied else {**tree, "head": {"kernel": arrays["head"].T}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="weights, such as stories260K.bin")
    parser.add_argument("vocabulary", type=Path, help="its tokens, such as tok512.bin")
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args()
    try:
        convert(options.model, options.vocabulary, options.out)
    except InputError as error:
        print(f"convert_llama2c: {error}", file=sys.stderr)
        return 2
    print(f"{options.out} holds the model; try: pangu-jax generate {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
