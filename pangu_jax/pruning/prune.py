"""Slicing: `prune(params, plan, cfg=cfg) -> (params, cfg)`. No data, only indexing.

With hidden channels removed, RMSNorm gains are re-initialized as the plan says (SLNP); groups that
a removed layer hands over are concatenated to the layer's own (CLAP). Both are in `reinit.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.spec import check as check_spec
from pangu_jax.core.spec import is_spec
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.block import block_spec
from pangu_jax.pruning import axes, reinit
from pangu_jax.pruning.plan import LayerPlan, Plan, check, pruned_config


def prune(
    params: dict[str, Any], plan: Plan, *, cfg: DecoderConfig, donate: bool = False
) -> tuple[dict[str, Any], DecoderConfig]:
    """The model that the plan describes.

    Args:
      params: tree of `decoder.spec(cfg)`.
      plan: made for a model of these sizes.
      cfg: the model.
      donate: delete each leaf of `params` as soon as its successor exists, so that the two trees
        are never in memory together.

    Returns:
      The pruned parameters, in their dtypes, and their configuration. If the plan keeps everything
      the arrays are equal bit for bit.

    Raises:
      InputError: the plan is for a model of other sizes.
    """
    check(plan, cfg)
    check_spec(decoder.spec(cfg), params)
    new = pruned_config(cfg, plan)
    hidden = {"embed": np.asarray(plan.hidden)} if len(plan.hidden) != cfg.width else {}
    source = _Source(params, cfg)
    runs, start = [], 0
    for _, number in transformer.run_lengths(new):
        runs.append((plan.layers[start : start + number], {}))
        start += number
    paths: dict[str, Any] = {}
    for layer, _ in transformer.run_lengths(cfg):
        paths |= flatten(block_spec(cfg.width, layer), is_leaf=is_spec)
    for path, spec in paths.items():
        for parts, leaves in runs:
            made = [_leaf(source, part, path, spec.axes, hidden, plan) for part in parts]
            if all(leaf is not None for leaf in made):
                leaves[path] = axes.stack(made)
        if donate:
            source.delete(path)
    tree: dict[str, Any] = {"runs": [_nested(leaves) for _, leaves in runs]}
    outer = flatten(decoder.spec(cfg), is_leaf=is_spec)
    for path, leaf in flatten({k: v for k, v in params.items() if k != "runs"}).items():
        value = jnp.asarray(axes.cut(axes.host_view(leaf), outer[path].axes, hidden))
        if path == "norm/scale":
            value = reinit.norm_gain(leaf, value, plan, "norm")
        _place(tree, path, value)
    return check_spec(decoder.spec(new), tree), new


def keep_of(part: LayerPlan) -> axes.Keep:
    """Kept indices of a layer by logical axis; moved groups count on from the layer's own."""
    return {
        "kv_heads": np.asarray(part.groups, int),
        "q_per_kv": np.asarray(part.heads, int),
        "mlp": np.asarray(part.channels, int),
    }


class _Source:
    """The original layers' leaves, by layer number and path."""

    def __init__(self, params, cfg):
        self.cfg = cfg
        self.given = [flatten(run) for run in params["runs"]]
        self.runs = [
            {path: axes.host_view(leaf) for path, leaf in run.items()} for run in self.given
        ]
        self.where = [
            (run, place)
            for run, (_, number) in enumerate(transformer.run_lengths(cfg))
            for place in range(number)
        ]

    def leaf(self, layer: int, path: str) -> jax.Array | None:
        run, place = self.where[layer]
        found = self.runs[run].get(path)
        return None if found is None else found[place]

    def delete(self, path: str) -> None:
        for given, run in zip(self.given, self.runs, strict=True):
            if path in run:
                run.pop(path)
                given.pop(path).delete()


def _leaf(source: _Source, part: LayerPlan, path: str, names, hidden, plan: Plan):
    """One leaf of one layer of the pruned model, or None if the layer has none."""
    whole = source.leaf(part.layer, path)
    if whole is None:
        return None
    keep = keep_of(part)
    own = {**keep, "q_per_kv": keep["q_per_kv"][: len(part.groups)], **hidden}
    value = axes.cut(whole, names, own)
    if part.moved and "kv_heads" in names:
        arrays = [value] if part.groups else []
        for number, (layer, group) in enumerate(part.moved):
            index = len(part.groups) + number
            one = {"kv_heads": np.asarray([group]), "q_per_kv": keep["q_per_kv"][index : index + 1]}
            taken = axes.cut(source.leaf(layer, path), names, {**one, **hidden})
            arrays.append(reinit.moved(source, part, number, path, names, taken, hidden, plan))
        xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jnp
        value = xp.concatenate(arrays, axis=names.index("kv_heads"))
    if hidden and path.endswith("norm/scale") and names == ("embed",):
        value = reinit.norm_gain(whole, value, plan, f"{part.layer}/{path.split('/')[0]}")
    return value


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        _place(tree, path, leaf)
    return tree


def _place(tree: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
