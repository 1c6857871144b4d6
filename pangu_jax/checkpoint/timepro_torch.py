"""TimePro parameters under the names of its released torch code."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import check, is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig

# What the released code makes and its forward pass never uses.
UNUSED = ("position_embedding.pe", ".conv2d.weight", ".conv2d.bias", ".out_proj.weight")

# Ours below a mixer: (theirs, whether it is stored transposed).
MIXER = {
    "in/kernel": ("in_proj.weight", True),
    "skip": ("Ds", False),
    "norm/scale": ("out_norm.weight", False),
    "norm/bias": ("out_norm.bias", False),
    "select/kernel": ("x_proj_weight", True),
    "step/kernel": ("dt_projs_weight", True),
    "step/bias": ("dt_projs_bias", False),
    "rate_log": ("A_logs", False),
    "value/kernel": ("state_pro.value_proj.weight", True),
    "value/bias": ("state_pro.value_proj.bias", False),
    "offset_mask/kernel": ("state_pro.offset_mask.weight", True),
    "offset_mask/bias": ("state_pro.offset_mask.bias", False),
    "out/kernel": ("state_pro.output_proj.weight", True),
}
BLOCK = {
    "norm/scale": ("mlp.norm1.weight", False),
    "norm/bias": ("mlp.norm1.bias", False),
    "up/kernel": ("mlp.fc1.weight", True),
    "up/bias": ("mlp.fc1.bias", False),
    "down/kernel": ("mlp.fc2.weight", True),
    "down/bias": ("mlp.fc2.bias", False),
    **{f"forward/{ours}": (f"op.{theirs}", t) for ours, (theirs, t) in MIXER.items()},
    **{f"backward/{ours}": (f"op2.{theirs}", t) for ours, (theirs, t) in MIXER.items()},
}
WHOLE = {
    "embed/kernel": ("patch_embedding.value_embedding.weight", True),
    "norm/scale": ("encoder.norm.weight", False),
    "norm/bias": ("encoder.norm.bias", False),
    "head/kernel": ("projector.weight", True),
    "head/bias": ("projector.bias", False),
}


def torch_names(cfg: TimeProConfig) -> dict[str, tuple[str, bool]]:
    """Every parameter's path in our tree: its torch name, and whether that is transposed."""
    names = dict(WHOLE)
    for i in range(cfg.layers):
        for ours, (theirs, transposed) in BLOCK.items():
            names[f"blocks/{i}/{ours}"] = (f"encoder.attn_layers.{i}.{theirs}", transposed)
    wanted = flatten(timepro.spec(cfg), is_leaf=is_spec)
    return {path: name for path, name in names.items() if path in wanted}


def from_torch(state: Mapping[str, Any], cfg: TimeProConfig) -> dict[str, Any]:
    """The parameter tree of a state_dict of the released code.

    Args:
      state: {torch name: array}; what the released forward pass never uses may be there or not.
      cfg: the model; the result is checked against its spec.

    Returns:
      numpy arrays in the shape of `timepro.spec(cfg)`, of the types given.

    Raises:
      InputError: a tensor is missing, unknown or of another shape.
    """
    names = torch_names(cfg)
    tree: dict[str, Any] = {"blocks": [{} for _ in range(cfg.layers)]}
    for path, (name, transposed) in names.items():
        if name not in state:
            raise InputError(f"the checkpoint lacks {name}")
        value = np.asarray(state[name])
        _put(tree, path.split("/"), value.T if transposed else value)
    known = {name for name, _ in names.values()}
    for name in state:
        if name not in known and not name.endswith(UNUSED):
            raise InputError(f"the checkpoint has a tensor {name} that TimePro does not know")
    return check(timepro.spec(cfg), tree, "the checkpoint")


def _put(tree: Any, path: list[str], value: np.ndarray) -> None:
    for step in path[:-1]:
        tree = tree[int(step)] if isinstance(tree, list) else tree.setdefault(step, {})
    tree[path[-1]] = value
