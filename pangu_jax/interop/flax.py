"""Any (spec, function) pair as a Linen module or an NNX module.

    block = Adapted(lambda: moe_spec(64, cfg), partial(moe, cfg=cfg))
    layer = LinenAdapter(block)                        # inside a Linen model
    layer = NnxAdapter(block, rngs=nnx.Rngs(0))        # inside an NNX model

Every parameter is one variable under the name that the spec gives it, with the spec's logical axes
as its sharding metadata, so flax's own rules and checkpoints see it like any other parameter.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from pangu_jax.core.spec import Spec, init, is_spec


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """The functions that an adapter wraps.

    Attributes:
      spec: function without arguments that returns the spec tree, a dict at the top.
      function: `function(params, *inputs, **options)`, pure.
    """

    spec: Callable[[], dict[str, Any]]
    function: Callable[..., Any]


class LinenAdapter(nn.Module):
    """A Linen module whose parameters are a spec tree's and whose call is a pure function's.

    Attributes:
      adapted: the pair it wraps.
    """

    adapted: Adapted

    @nn.compact
    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Calls the function with this module's parameters."""
        params = {
            name: self.param(name, _boxed, branch) for name, branch in self.adapted.spec().items()
        }
        return self.adapted.function(params, *inputs, **options)


class NnxAdapter(nnx.Module):
    """An NNX module whose variables are a spec tree's and whose call is a pure function's.

    Attributes:
      params: the spec tree with an `nnx.Param` at each leaf.
    """

    def __init__(self, adapted: Adapted, *, rngs: nnx.Rngs):
        """Draws the parameters from `rngs.params()`."""
        spec = adapted.spec()
        values = init(spec, key=rngs.params())
        self.function = adapted.function
        # Axis names are logical: flax may split by them once rules are set, not at creation.
        self.params = nnx.data(
            jax.tree.map(
                lambda leaf, x: nnx.Param(x, out_sharding=leaf.axes, eager_sharding=False),
                spec,
                values,
                is_leaf=is_spec,
            )
        )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Calls the function with this module's parameters."""
        params = jax.tree.map(lambda v: v[...], self.params, is_leaf=_is_variable)
        return self.function(params, *inputs, **options)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _boxed(key: jax.Array, spec: Any) -> Any:
    def box(leaf: Spec, x: jax.Array) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(x, leaf.axes)

    return jax.tree.map(box, spec, init(spec, key=key), is_leaf=is_spec)
