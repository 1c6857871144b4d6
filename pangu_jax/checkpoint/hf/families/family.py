"""The description of a family of Hugging Face checkpoints."""

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

# Of a file's name: how errors name the file, and its JSON value, None if there is no such file.
Sidecars = Callable[[str], tuple[str, Any]]


def _as_it_is(cfg: Any, _: Any) -> Any:
    return cfg


@dataclasses.dataclass(frozen=True)
class Family:
    """One family's files.

    Attributes:
      name: its name on the command line and in `save`.
      architecture: the entry of `architectures` in config.json.
      model_type: the entry of that name in config.json.
      tensors: leaf path, without the run it is in, to tensor name; {layer} and {expert} stand for
        numbers.
      read: keys of config.json to a configuration; raises InputError naming the key.
      write: a configuration to those keys; what they cannot say is found by reading them back.
      fused: expert leaves that a file may hold in one tensor: leaf path to (tensor name, which
        part of the tensor's second axis, of how many).
      skipped: patterns of tensors to pass over.
      kind: of the models, one of `models.registry.KINDS`.
      prefix: prefix that the names of a bare model's tensors lack; or, if `tensors` are those of a
        bare model, the prefix that other files put before them.
      read_sidecars: a configuration completed from the files beside config.json.
      write_sidecars: those files, of a configuration to {path in the folder: JSON value}.
      infer_from_tensors: a configuration completed from the set of leaves that there are tensors
        for; those of layers are left out.
    """

    name: str
    architecture: str
    model_type: str
    tensors: Mapping[str, str]
    read: Callable[[dict[str, Any]], Any]
    write: Callable[[Any], dict[str, Any]]
    fused: Mapping[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    kind: str = "decoder"
    prefix: str = "model."
    read_sidecars: Callable[[Any, Sidecars], Any] = _as_it_is
    write_sidecars: Callable[[Any], dict[str, Any]] = lambda _: {}
    infer_from_tensors: Callable[[Any, Container[str]], Any] = _as_it_is


def linear(leaf: str, tensor: str) -> dict[str, str]:
    """The two entries of a linear map: kernel to weight, bias to bias."""
    return {f"{leaf}/kernel": f"{tensor}.weight", f"{leaf}/bias": f"{tensor}.bias"}


def norm(leaf: str, tensor: str) -> dict[str, str]:
    """The two entries of a LayerNorm: scale to weight, bias to bias."""
    return {f"{leaf}/scale": f"{tensor}.weight", f"{leaf}/bias": f"{tensor}.bias"}
