"""Flax modules through the adapter, and flax's own, become ONNX and StableHLO."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from pangu_jax.export import program, stablehlo
from pangu_jax.export.onnx.write import export
from pangu_jax.interop.flax import Adapted, LinenAdapter, NnxAdapter
from pangu_jax.nn.how import How
from pangu_jax.nn.moe import MoEConfig, moe, moe_spec

pytestmark = pytest.mark.onnx
CFG = MoEConfig(experts=8, groups=4, top_k=1, width=16, shared_width=8, router_scale=True)
ADAPTED = Adapted(
    lambda: moe_spec(12, CFG), partial(moe, cfg=CFG, how=How(impl={"expert_mlp": "dense"}))
)
X = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)


def bundles():
    module = LinenAdapter(ADAPTED)
    yield program.linen(module, module.init(jax.random.key(0), X), {"x": X})
    yield program.nnx(NnxAdapter(ADAPTED, rngs=nnx.Rngs(0)), {"x": X})


@pytest.mark.long
def test_adapted_modules_export_with_their_parameter_names(tmp_path):
    for number, bundle in enumerate(bundles()):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, rows, lowered = export(bundle, folder)
        assert max(row.relative for row in rows) <= 2e-5
        assert {"output_0", "output_1_load"} <= {*lowered["forward"].outputs}
        assert any("experts/gate/kernel" in name for name in lowered["forward"].graph.constants)
    (tmp_path / "hlo").mkdir()
    _, rows = stablehlo.export(bundle, tmp_path / "hlo")
    assert max(row.relative for row in rows) <= 2e-5


class Net(nn.Module):
    """Convolution, normalization, both poolings, a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.LayerNorm()(nn.Conv(8, (3, 3))(x)))
        x = nn.max_pool(nn.avg_pool(x, (2, 2), (2, 2), padding="SAME"), (3, 2), padding="SAME")
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_an_ordinary_flax_network_exports(tmp_path):
    x = np.random.default_rng(1).normal(size=(2, 9, 8, 3)).astype(np.float32)
    _, rows, _ = export(program.linen(Net(), Net().init(jax.random.key(0), x), {"x": x}), tmp_path)
    assert [row.output for row in rows] == ["output"]
    assert rows[0].relative <= 2e-5
