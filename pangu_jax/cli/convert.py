"""Runs `pangu-jax convert`; its options are in `cli/options/convert.py`."""

import sys

from pangu_jax.checkpoint import gguf_file, hf
from pangu_jax.checkpoint.hf import read_keys
from pangu_jax.checkpoint.open import checkpoint_format, open_checkpoint
from pangu_jax.cli.generate_file import note_thoughts
from pangu_jax.cli.options.convert import Options
from pangu_jax.cli.progress import progress
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count
from pangu_jax.data import tokenizer_gguf
from pangu_jax.data.tokenizer_save import companions
from pangu_jax.models import registry


def main(options: Options) -> None:
    """Converts the checkpoint, and prints what was written."""
    kind = checkpoint_format(options.checkpoint)
    if kind == "gguf":
        _convert_gguf(options)
        return
    params, cfg, found = _open(options.checkpoint, kind)
    source = found if found != "bytes" else None
    own = hf.read_config(source)[1] if source and _has_config(source) else None
    names = [options.family or own] if options.family or own else hf.families_of(cfg)
    files = companions(found, options.checkpoint)
    _write(params, cfg, options, names, source if own else None, files)
    if own and "auto_map" in read_keys(source):
        print(
            "note: its config.json named Python code (auto_map), which is not copied; stock "
            "transformers loads what it knows itself, such as --family llama",
            file=sys.stderr,
        )
    note_thoughts(options.checkpoint)
    if found == "bytes":
        print(
            "note: its tokens are bytes, for which other libraries have no tokenizer",
            file=sys.stderr,
        )


def _convert_gguf(options: Options) -> None:
    opened = gguf_file.open_gguf(options.checkpoint)
    params, cfg = hf.view(opened)
    family = options.family or gguf_file.FAMILIES[opened.value("general.architecture")]
    fields = {name: opened.value(name) for name in opened.fields if name.startswith("tokenizer.")}
    note, files = "", {}
    try:
        files = tokenizer_gguf.tokenizer_files(fields, opened.path)
    except InputError as error:
        note = f"note: {error}; put the model's own tokenizer.json into {options.out}"
    _write(params, cfg, options, [family], None, files)
    if note:
        print(note, file=sys.stderr)


def _open(checkpoint: str, kind: str):
    """As `open_checkpoint`, but tensors of a Hugging Face folder stay on disk until written."""
    if kind != "hf":
        return open_checkpoint(checkpoint)
    return *hf.view(checkpoint), checkpoint


def _has_config(folder: str) -> bool:
    """Whether the folder's config.json describes a model; a run folder's describes the run."""
    try:
        hf.read_config(folder)
    except InputError:
        return False
    return True


def _write(
    params, cfg, options: Options, names: list[str], source: str | None, files: dict[str, bytes]
) -> None:
    """Saves as the first of the families that can express the model, and prints which."""
    with progress() as show:
        name = hf.save_first(
            params,
            cfg,
            options.out,
            families=names,
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_gb * 1e9,
            source=source,
            companions=files,
            progress=lambda done, total: show("writing, bytes", done, total),
        )
    print(f"{options.out} holds {count(registry.spec(cfg)):,} parameters as {name}")
