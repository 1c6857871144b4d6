"""A tokenizer's files, ready to be copied to another folder."""

from pathlib import Path
from typing import Any

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import FileTokenizer, Tokenizer, load_tokenizer
from pangu_jax.data.tokenizer_files import CONFIG, json_file, leading_ids, read_object, with_prefix

GENERATION = "generation_config.json"
FAST = "PreTrainedTokenizerFast"  # takes a tokenizer.json as it is
COPIED = ("special_tokens_map.json", "chat_template.jinja", GENERATION)
# What only classes that read a tokenizer.model know.
OLD = ("auto_map", "legacy", "sp_model_kwargs", "add_prefix_space", "added_tokens_decoder")


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """{name: content} of files from which this library and stock transformers get its ids.

    tokenizer.json puts the tokenizer's `begin` before a text, so that others do so too;
    tokenizer_config.json names a stock class, and no Python files; the end of text is written down
    where only files that are not copied name it. Bytes have no files.

    Args:
      tokenizer: from `load_tokenizer`.

    Raises:
      InputError: one of its files cannot be read.
    """
    if not isinstance(tokenizer, FileTokenizer):
        return {}
    file = Path(tokenizer.name)
    converted, same = file.suffix == ".model", leading_ids(tokenizer.inner) == tokenizer.begin
    if same and not converted:
        content = file.read_bytes()
    elif same:
        content = tokenizer.inner.to_str().encode()
    else:
        content = with_prefix(tokenizer.inner, tokenizer.begin).to_str().encode()
    beside = ((name, file.with_name(name)) for name in COPIED)
    found = {name: path.read_bytes() for name, path in beside if path.is_file()}
    found.setdefault(GENERATION, json_file(_ends(tokenizer)))
    config = _config(tokenizer, file.parent, converted)
    return {"tokenizer.json": content, **found, CONFIG: json_file(config)}


def companions(path: str | Path, checkpoint: str | Path) -> dict[str, bytes]:
    """The files of a checkpoint's tokenizer for a folder that is made from the checkpoint.

    Where it cannot be read, tokenizer_config.json alone, without Python files it might point to.

    Args:
      path: of the tokenizer, as from `checkpoint.open.open_checkpoint`.
      checkpoint: the folder.
    """
    try:
        return tokenizer_files(load_tokenizer(path, checkpoint=checkpoint))
    except InputError:
        config = read_object(Path(path) / CONFIG)
        return {CONFIG: json_file(_without(config, "auto_map"))} if "auto_map" in config else {}


def _config(tokenizer: FileTokenizer, folder: Path, converted: bool) -> dict[str, Any]:
    config = read_object(folder / CONFIG)
    if config.get("tokenizer_class") and not converted and "auto_map" not in config:
        return config
    config = _without(config, *(OLD if converted else ("auto_map",)))
    named = {f"{n[:3]}_token": tokenizer.id_to_token(i) for n, i in _first(tokenizer).items()}
    return {**named, **config, "tokenizer_class": FAST}


def _first(tokenizer: FileTokenizer) -> dict[str, int]:
    """The begin and the first end of text."""
    begin, ends = tokenizer.boundary, tokenizer.eos_ids
    found = {} if begin in ends else {"bos_token_id": begin}
    return found | ({"eos_token_id": ends[0]} if ends else {})


def _ends(tokenizer: FileTokenizer) -> dict[str, Any]:
    found: dict[str, Any] = dict(_first(tokenizer))
    return found | ({"eos_token_id": list(tokenizer.eos_ids)} if tokenizer.eos_ids else {})


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}
