"""config.json in the Hugging Face form, both ways."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from pangu_jax.checkpoint import safetensors_files
from pangu_jax.checkpoint.hf.families import sentence_transformers
from pangu_jax.checkpoint.hf.families.config_keys import UNDERSTOOD
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.checkpoint.hf.families.registry import named, recognize
from pangu_jax.core.config import read_json, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import registry
from pangu_jax.models.embedder import EmbedderConfig

CONFIG = "config.json"


def read_keys(folder: str | Path) -> dict[str, Any]:
    """The keys of a folder's config.json.

    Raises:
      InputError: there is no such file, or it holds no object.
    """
    path = safetensors_files.own_file(folder, CONFIG)
    keys = read_json(path)
    if not isinstance(keys, dict):
        raise InputError(f"{path} must hold an object, got {json.dumps(keys):.40}")
    return keys


def read_config(folder: str | Path) -> tuple[Any, str]:
    """The model that a folder's config.json describes, and the name of its family.

    Raises:
      InputError: there is no such file, its architecture is not known, or an option is not
        supported; names the key.
    """
    keys = read_keys(folder)
    try:
        family = recognize(keys)
        cfg = _read_layers(keys, family)
    except InputError as error:
        raise InputError(f"{Path(folder) / CONFIG}: {error}") from error
    return family.read_sidecars(cfg, partial(_beside, Path(folder))), family.name


def read_pooling(folder: str | Path, cfg: EmbedderConfig) -> EmbedderConfig:
    """An embedder with the settings in its decoder's folder's sentence-transformers files.

    Raises:
      InputError: a file is not in that library's format, or asks for something unsupported.
    """
    return sentence_transformers.read_sidecars(cfg, partial(_beside, Path(folder)))


def read_prompts(folder: str | Path) -> dict[str, str]:
    """Named prompts to prepend to texts, from a sentence-transformers folder.

    Raises:
      InputError: the file is not in that library's format.
    """
    return sentence_transformers.prompts(*_beside(Path(folder), sentence_transformers.PROMPTS))


def write_keys(
    cfg: Any,
    family: Family,
    source: str | Path | None = None,
    *,
    per_layer: bool = False,
) -> dict[str, Any]:
    """The keys that describe a model in a family's terms.

    Args:
      cfg: the model.
      family: the family.
      source: folder whose config.json is the base: kept unchanged if it says the same, else its
        keys that no family reads survive; but for `auto_map`, as the Python files that it points
        to are not copied.
      per_layer: write layers of different widths as `per_layer_config`, which transformers has had
        a place for since 5.14; its Llama does not build from it yet, `read_config` does.

    Raises:
      InputError: the family cannot express the model; names what.
    """
    kind = registry.kind_of(cfg).name
    if kind != family.kind:
        raise InputError(f"a {family.architecture} cannot express a model of kind {kind}")
    keys = _express_layers(cfg, family) if per_layer else _express(cfg, family)
    head = {"architectures": [family.architecture], "model_type": family.model_type}
    if source is None:
        return {**head, **keys}
    base = read_keys(source)
    before, name = read_config(source)
    base.pop("auto_map", None)
    if name == family.name and _resolved(before, family, cfg) == cfg:
        return base
    kept = {key: value for key, value in base.items() if key not in UNDERSTOOD}
    return {**head, **kept, **keys}


def check_written(cfg: Any, written: Path, folder: str | Path) -> None:
    """Checks that a folder just written describes the model.

    Args:
      cfg: the model.
      written: the folder, which may have files of a source that say something else.
      folder: its name in errors.

    Raises:
      InputError: it describes another; names the difference.
    """
    found, name = read_config(written)
    lost = _difference(to_json(cfg), to_json(_resolved(found, named(name), cfg)))
    if lost is not None:
        raise InputError(f"{folder} cannot be written beside the source's files: {lost}")


# Keys that `per_layer_config` may set for a single layer.
_OF_LAYER = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def _beside(folder: Path, name: str) -> tuple[str, Any]:
    """See `family.Sidecars`."""
    path = folder / name
    return str(path), read_json(safetensors_files.own_file(folder, name)) if os.path.lexists(
        path
    ) else None


def _read_layers(keys: dict[str, Any], family: Family) -> Any:
    """The model, with single layers changed by `per_layer_config`."""
    changes = keys.get("per_layer_config")
    keys = {key: value for key, value in keys.items() if key != "per_layer_config"}
    cfg = family.read(keys)
    if not changes:
        return cfg
    if not isinstance(changes, dict) or not all(isinstance(x, dict) for x in changes.values()):
        raise InputError("per_layer_config must be an object of objects")
    layers = list(cfg.layers)
    numbers = {str(i) for i in range(len(layers))}
    for name, change in changes.items():
        if name not in numbers:
            raise InputError(f"per_layer_config names layer {name!r} of {len(layers)}")
        unknown = sorted(set(change) - set(_OF_LAYER))
        if unknown:
            raise InputError(f"per_layer_config of layer {name} has {unknown[0]}, not supported")
        layers[int(name)] = family.read({**keys, **change}).layers[int(name)]
    return dataclasses.replace(cfg, layers=tuple(layers))


def _express_layers(cfg: Any, family: Family) -> dict[str, Any]:
    """The keys of the first layer's widths, and the differences of the others."""
    keys, changes = {}, {}
    for i, layer in enumerate(cfg.layers):
        # Written with one group: stock transformers' condition on the number of heads does not
        # apply, as it cannot build such layers anyway.
        one = dataclasses.replace(layer.attention, kv_heads=1)
        one = dataclasses.replace(layer, attention=one)
        found = family.write(dataclasses.replace(cfg, layers=(one,) * len(cfg.layers)))
        found["num_attention_heads"] = layer.attention.kv_heads * layer.attention.q_per_kv
        found["num_key_value_heads"] = layer.attention.kv_heads
        keys = keys or found
        own = {name: found[name] for name in _OF_LAYER if found.get(name) != keys.get(name)}
        changes |= {str(i): own} if own else {}
    keys = {**keys, "per_layer_config": changes} if changes else keys
    lost = _difference(to_json(cfg), to_json(_read_layers(keys, family)))
    if lost is not None:
        raise InputError(f"a {family.architecture} cannot express {lost}")
    return keys


def _express(cfg: Any, family: Family) -> dict[str, Any]:
    keys = family.write(cfg)
    files = family.write_sidecars(cfg)
    found = family.read_sidecars(family.read(keys), lambda name: (name, files.get(name)))
    lost = _difference(to_json(cfg), to_json(_resolved(found, family, cfg)))
    if lost is not None:
        raise InputError(f"a {family.architecture} cannot express {lost}")
    return keys


def _resolved(found: Any, family: Family, cfg: Any) -> Any:
    """`found` with the fields that only the tensors of `cfg` tell."""
    return family.infer_from_tensors(found, flatten(registry.spec(cfg), is_leaf=is_spec))


def _difference(wanted: Any, found: Any, where: str = "") -> str | None:
    """The first place where two JSON values differ: "layers[0].sandwich_norm = True"."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        pairs = [(f"{where}.{key}".lstrip("."), wanted[key], found[key]) for key in wanted]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = [
            (f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(wanted, found, strict=True))
        ]
    elif wanted == found:
        return None
    elif isinstance(wanted, dict) or wanted is None:
        return f"{where} being {'absent' if wanted is None else 'present'}"
    else:
        rest = "" if isinstance(found, dict | list) or found is None else f" (only {found!r})"
        return f"{where} = {wanted!r:.40}{rest}"
    return next(filter(None, (_difference(a, b, name) for name, a, b in pairs)), None)
