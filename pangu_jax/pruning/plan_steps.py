"""A plan in two steps: one removes and merges layers, the next cuts widths."""

import dataclasses

from pangu_jax.pruning import axes
from pangu_jax.pruning.plan import LayerPlan, Plan


def compose(first: Plan, second: Plan) -> Plan:
    """The plan equal to `first` and then `second`; `second` may not remove layers."""
    parts = []
    for inner, outer in zip(first.layers, second.layers, strict=True):
        own, pool = len(inner.groups), [*inner.groups, *inner.moved]
        stays = [g for g in outer.groups if g < own]
        moves = [g for g in outer.groups if g >= own]
        scales = inner.moved_scale or (1.0,) * len(inner.moved)
        heads = [
            tuple(inner.heads[g][h] for h in outer.heads[n]) for n, g in enumerate(outer.groups)
        ]
        parts.append(
            LayerPlan(
                inner.layer,
                tuple(pool[g] for g in stays),
                tuple(heads),
                tuple(inner.channels[c] for c in outer.channels),
                tuple(pool[g] for g in moves),
                tuple(scales[g - own] for g in moves) if inner.moved_scale else (),
            )
        )
    names = {str(i): str(part.layer) for i, part in enumerate(first.layers)}
    factors = {
        "/".join([names.get(k.split("/")[0], k.split("/")[0]), *k.split("/")[1:]]): v
        for k, v in second.norm_factors.items()
    }
    return dataclasses.replace(
        first,
        layers=tuple(parts),
        hidden=second.hidden,
        norm=second.norm,
        norm_factors=factors,
    )


def split(plan: Plan) -> tuple[Plan, Plan]:
    """The inverse of `compose`: a plan that removes and merges layers, and one that cuts widths."""
    first, second, sizes = [], [], []
    for part in plan.layers:
        size = plan.sizes[part.layer]
        number = len(part.groups) + len(part.moved)
        every = (tuple(range(size.heads)),) * number
        first.append(
            dataclasses.replace(part, heads=every, channels=tuple(range(size.ffn)))
            if part.moved
            else LayerPlan(
                part.layer,
                tuple(range(size.groups)),
                (tuple(range(size.heads)),) * size.groups,
                tuple(range(size.ffn)),
            )
        )
        sizes.append(axes.Sizes(len(first[-1].heads), size.heads, size.ffn))
        groups = tuple(range(number)) if part.moved else part.groups
        second.append(LayerPlan(len(second), groups, part.heads, part.channels))
    names = {str(part.layer): str(i) for i, part in enumerate(plan.layers)}
    factors = {
        "/".join([names.get(k.split("/")[0], k.split("/")[0]), *k.split("/")[1:]]): v
        for k, v in plan.norm_factors.items()
    }
    whole = tuple(range(plan.width))
    depth = dataclasses.replace(plan, layers=tuple(first), hidden=whole, norm_factors={})
    width = Plan(
        tuple(second), plan.hidden, plan.width, tuple(sizes), plan.norm, norm_factors=factors
    )
    return depth, width
