"""The registry of model kinds, which checkpoints, exports and commands consult."""

import dataclasses
from collections.abc import Callable
from typing import Any

from pangu_jax.core import config
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, embedder, encoder, thinker, timepro


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
      name: its name in files and errors.
      config: the frozen dataclass that describes such a model; it has no field called `kind`.
      spec: maps a configuration to its tree of `Spec`.
    """

    name: str
    config: type
    spec: Callable[[Any], Any]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("decoder", decoder.DecoderConfig, decoder.spec),
        Kind("encoder", encoder.EncoderConfig, encoder.spec),
        Kind("embedder", embedder.EmbedderConfig, embedder.spec),
        Kind("thinker", thinker.ThinkerConfig, thinker.spec),
        Kind("timepro", timepro.TimeProConfig, timepro.spec),
    )
}


def kind_of(cfg: Any) -> Kind:
    """The kind of model that a configuration describes.

    Raises:
      InputError: it describes none.
    """
    for kind in KINDS.values():
        if type(cfg) is kind.config:
            return kind
    raise InputError(f"a {type(cfg).__name__} describes no model; known: {', '.join(KINDS)}")


def spec(cfg: Any) -> Any:
    """The spec tree of a model of any kind.

    Raises:
      InputError: the configuration describes no model.
    """
    return kind_of(cfg).spec(cfg)


def to_json(cfg: Any) -> dict[str, Any]:
    """A model's configuration as JSON values, with its kind.

    Raises:
      InputError: it describes no model.
    """
    return {"kind": kind_of(cfg).name, **config.to_json(cfg)}


def from_json(value: Any, where: str = "config") -> Any:
    """Reads a configuration of `to_json`, in its current form or an older one.

    Args:
      value: the result of `json.loads`.
      where: the place's name in errors, usually the file's.

    Raises:
      InputError: the kind is not known, or the rest does not describe a model of it.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object that describes a model, got {value!r:.60}")
    fields = _brought_up_to_date(value)
    name = fields.pop("kind")
    if not isinstance(name, str) or name not in KINDS:
        known = ", ".join(KINDS)
        raise InputError(f"{where} names the kind of model {name!r:.60}; known: {known}")
    return config.from_json(KINDS[name].config, fields, where)


def _brought_up_to_date(value: dict[str, Any]) -> dict[str, Any]:
    """A copy in today's form of what older versions wrote; invalid parts stay unchanged.

    Files without a kind are from when there were decoders only, whose layers said
    `sandwich_norm`.
    """
    layers = value.get("layers")
    if "kind" in value or not isinstance(layers, list):
        return {"kind": "decoder", **value}
    return {"kind": "decoder", **value, "layers": [_layer(layer) for layer in layers]}


def _layer(layer: Any) -> Any:
    if not isinstance(layer, dict) or not isinstance(layer.get("sandwich_norm"), bool):
        return layer
    rest = {name: item for name, item in layer.items() if name != "sandwich_norm"}
    return {**rest, "norm_place": "sandwich" if layer["sandwich_norm"] else "pre"}
