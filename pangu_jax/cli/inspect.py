"""Runs `pangu-jax inspect`; its options are in `cli/options/inspect.py`."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.table import Table

from pangu_jax.checkpoint import forecaster, gguf_file, hf, safetensors_files, store, verify
from pangu_jax.checkpoint.open import checkpoint_format
from pangu_jax.cli.options.inspect import Options
from pangu_jax.core.config import to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import count, nbytes
from pangu_jax.models import decoder, registry, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.nn.block import LayerConfig

MEMORY = ("float32", "bfloat16", "int8")
# What --verify is not for.
OWN = {
    "run": "a run of ours, which has no checksums",
    "gguf": "a GGUF file, which has no checksums",
    "forecaster": "a forecaster, whose checksum is compared whenever it is read",
}


def main(options: Options) -> None:
    """Prints the table or one JSON object, and with --verify what was verified."""
    found = describe(options.checkpoint)
    if not options.json:
        _print(found)
    if options.verify:
        found["verified"] = _verify(options)
    if options.json:
        print(json.dumps(found))


def _print(found: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(found):
        table.add_row(name, value)
    Console().print(table)


def _verify(options: Options) -> list[str]:
    """Verifies the folder, printing what holds; returns the files whose checksums match."""
    kind = checkpoint_format(options.checkpoint)
    if kind != "hf":
        raise InputError(
            f"{options.checkpoint} is {OWN[kind]}; --verify is for folders in the Hugging Face "
            "layout"
        )
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    say(f"structure: {verify.check_structure(options.checkpoint)}")
    right, absent = verify.check_sums(
        options.checkpoint, lambda name: print(f"reading {name}", file=sys.stderr)
    )
    say(f"checksums: right for {', '.join(right)}")
    if absent:
        say(f"not here, though their checksums are: {', '.join(absent)}")
    return right


def describe(path: str | Path) -> dict[str, Any]:
    """Describes the model of a folder, as JSON values.

    Args:
      path: a run folder of ours, a Hugging Face folder, a GGUF file, or a forecaster's folder.

    Returns:
      kind and family, `parameters`, bytes per storage type, and `files`: tensors and bytes stored,
      or None where the folder holds the configuration alone. For a decoder also shapes, parameters
      `active` per token, and key and value bytes per token of context, by type; for an encoder
      shapes and how vectors are made; else `config`.

    Raises:
      InputError: the folder is neither, or its configuration cannot be read.
    """
    path = Path(path)
    kind = checkpoint_format(path)
    if kind == "run":
        cfg, files = store.load_model(path), _steps(path)
        family = "run of pangu-jax train" if isinstance(cfg, DecoderConfig) else "run folder"
    elif kind == "forecaster":
        model = forecaster.load(path).cfg
        cfg, family, files = model.model, "forecaster of pangu-jax forecast", _trained(model)
    elif kind == "gguf":
        opened = hf.read_headers(gguf_file.open_gguf(path))
        cfg, family, files = opened.cfg, opened.family.name, _tensors(opened.stored)
    elif any(path.glob("*.safetensors*")):
        opened = hf.read_headers(path)
        cfg, family, files = opened.cfg, opened.family.name, _tensors(safetensors_files.find(path))
    else:
        (cfg, family), files = hf.read_config(path), None
    spec = registry.spec(cfg)
    return {
        "kind": registry.kind_of(cfg).name,
        "family": family,
        **_described(cfg),
        "parameters": count(spec),
        "bytes": {name: nbytes(spec, name) for name in MEMORY},
        "files": files,
    }


def _described(cfg: Any) -> dict[str, Any]:
    """The description of a model, by its kind."""
    if not isinstance(cfg, DecoderConfig | EncoderConfig | EmbedderConfig):
        return {"config": to_json(cfg)}
    shapes = {
        "layers": len(cfg.layers),
        "width": cfg.width,
        "vocab": cfg.vocab,
        "max_length": cfg.max_length,
        "runs": [
            {"layers": number, **_layer(layer)} for layer, number in transformer.run_lengths(cfg)
        ],
    }
    if not isinstance(cfg, DecoderConfig):
        own = ("pooler", "classes") if isinstance(cfg, EncoderConfig) else ("causal", "pool_prefix")
        names = ("pooling", "normalize", "text_length", "prefix", *own)
        found = {**shapes, **{name: getattr(cfg, name) for name in names}}
        latent = getattr(cfg, "latent", None)
        return found if latent is None else {**found, "latent": dataclasses.asdict(latent)}
    return {
        **shapes,
        "tied": cfg.tied,
        "active": decoder.count_active(cfg),
        "cache_bytes_per_token": {
            name: decoder.cache_bytes(cfg, jnp.dtype(name).itemsize) for name in MEMORY
        },
    }


def _layer(layer: LayerConfig) -> dict[str, Any]:
    parts = {"attention": layer.attention, "mlp": layer.mlp, "moe": layer.moe}
    return {n: None if part is None else dataclasses.asdict(part) for n, part in parts.items()}


def _tensors(stored: dict[str, safetensors_files.StoredTensor]) -> dict[str, Any]:
    types = sorted({tensor.dtype for tensor in stored.values()})
    return {
        "tensors": len(stored),
        "types": types,
        "files": len({tensor.file for tensor in stored.values()}),
    }


def _steps(folder: Path) -> dict[str, Any] | None:
    place = folder / store.CHECKPOINTS
    if not place.is_dir():
        return None
    steps = sorted(int(p.name) for p in place.iterdir() if p.name.isdigit())
    return {"steps": steps} if steps else None


def _trained(cfg: forecaster.ForecasterConfig) -> dict[str, Any]:
    return {"seeds": list(cfg.seeds), "columns": list(cfg.names), "trained_on": cfg.trained_on}


def _lines(found: dict[str, Any]):
    """The rows of the table: (name, text)."""
    yield "architecture", found["family"]
    yield "kind", found["kind"]
    if "config" in found:
        yield "model", ", ".join(f"{name} {value}" for name, value in found["config"].items())
    else:
        yield from _shapes(found)
    total, active = found["parameters"], found.get("active")
    yield "parameters", f"{total:,} ({_short(total)})"
    if active is not None:
        yield "active per token", f"{active:,} ({_short(active)}, {active / total:.1%})"
    yield "memory", ", ".join(f"{n} {_size(b)}" for n, b in found["bytes"].items())
    if "cache_bytes_per_token" in found:
        cache = found["cache_bytes_per_token"]
        yield "cache per token", ", ".join(f"{n} {b:,} bytes" for n, b in cache.items())
    yield "stored", _stored(found["files"])


def _shapes(found: dict[str, Any]):
    """The rows about a transformer's layers."""
    tied = f" ({'tied' if found['tied'] else 'untied'})" if "tied" in found else ""
    yield (
        "model",
        f"{found['layers']} layers, width {found['width']:,}, vocabulary {found['vocab']:,}{tied}, "
        f"made for {found['max_length']:,} tokens",
    )
    for run in _summary(found["runs"]):
        yield "layers", run
    if "pooling" in found:
        made = found["pooling"] or "not said how"
        scaled = ", scaled to length 1" * found["normalize"]
        cut = found["text_length"] or found["max_length"]
        yield "vectors", f"{made}{scaled}, of texts of at most {cut:,} tokens"
    if "causal" in found:
        yield "attention", "causal" if found["causal"] else "bidirectional"
    if "latent" in found:
        yield (
            "latent",
            f"{found['latent']['latents']:,}, looked up by {found['latent']['heads']} heads",
        )
    if found.get("classes"):
        yield "classes", f"{found['classes']:,}"


def _summary(runs: list[dict[str, Any]]):
    """One line per run; a model whose layers all differ is cut after eight."""
    for run in runs[:8]:
        attention, mlp, moe = run["attention"], run["mlp"], run["moe"]
        heads = attention["kv_heads"] * attention["q_per_kv"]
        window = f" in a window of {attention['window']:,}" if attention["window"] else ""
        kv = f"on {attention['kv_heads']} kv heads{window}"
        parts = [f"{heads} heads of {attention['head_dim']} {kv}"]
        if mlp is not None:
            parts.append(f"MLP of {mlp['width']:,}")
        if moe is not None:
            active = moe["groups"] * moe["top_k"]
            parts.append(
                f"{active} of {moe['experts']} experts of {moe['width']:,} in {moe['groups']} "
                f"group{'s' * (moe['groups'] > 1)}"
            )
            if moe["shared_width"]:
                parts.append(f"shared expert of {moe['shared_width']:,}")
        yield f"{run['layers']} x {', '.join(parts)}"
    if len(runs) > 8:
        yield f"... and {len(runs) - 8} more runs of other shapes"


def _stored(files: dict[str, Any] | None) -> str:
    if files is None:
        return "the configuration alone"
    if "steps" in files:
        return f"checkpoints of steps {', '.join(map(str, files['steps']))}"
    if "seeds" in files:
        seeds, columns = len(files["seeds"]), len(files["columns"])
        of = "1 seed" if seeds == 1 else f"{seeds} seeds"
        return f"parameters of {of}, trained on the {columns:,} columns of {files['trained_on']}"
    number = files["files"]
    where = "1 file" if number == 1 else f"{number:,} files"
    return f"{files['tensors']:,} tensors ({', '.join(files['types'])}) in {where}"


def _short(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _size(size: int) -> str:
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= of:
            return f"{size / of:.2f} {unit}"
    return f"{size} bytes"
