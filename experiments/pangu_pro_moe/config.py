"""Presets: what is trained on what, for how long, and what is measured."""

import dataclasses

from pangu_jax.models import presets as models
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.moe import MoEConfig
from pangu_jax.train.language_config import AUX_WEIGHT
from pangu_jax.train.optimizer_config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One comparison of a grouped router with an ordinary top-k router.

    Attributes:
      model: the grouped model; its twin has the same sizes with all experts in one group.
      data: what `data.text.documents` takes; "stdlib" is Python's own source. Documents are taken
        in a fixed order until they make steps * batch * length bytes, so that a byte model sees
        each byte about once and the control is fitted to the same bytes.
      held_out: share of the documents that are measured, not trained on.
      steps: optimizer steps of each model.
      batch: windows per step.
      length: tokens per window.
      optimizer: AdamW and its schedule.
      aux_weight: weight of the auxiliary loss.
      seeds: every model is trained once a seed.
      dtype: type of the activations.
      remat: what the backward pass recomputes.
      evaluate_bytes: about how many bytes of held-out documents are measured.
      routing_tokens: how many held-out tokens the balance is measured on.
      devices: device counts of the imbalance score.
      batch_sizes: tokens of a serving batch, for the imbalance score.
      prompt: what the samples continue.
    """

    model: DecoderConfig
    data: str = "stdlib"
    held_out: float = 0.1
    steps: int = 1000
    batch: int = 4
    length: int = 256
    optimizer: OptimizerConfig = OptimizerConfig()
    aux_weight: float = AUX_WEIGHT
    seeds: tuple[int, ...] = (0,)
    dtype: str = "float32"
    remat: str | None = None
    evaluate_bytes: int = 100_000
    routing_tokens: int = 32_768
    devices: tuple[int, ...] = (2, 4, 8)
    batch_sizes: tuple[int, ...] = (8, 16, 64, 256, 1024)
    prompt: str = "class Reader:\n    def read(self, "


_SMOKE = models.uniform(
    models.BYTE_VOCAB,
    64,
    2,
    AttentionConfig(kv_heads=2, q_per_kv=2, head_dim=16),
    moe=MoEConfig(experts=16, groups=8, top_k=1, width=16, shared_width=32, router_scale=True),
    max_length=256,
)

PRESETS: dict[str, Experiment] = {
    # Under a minute on two CPU cores: shows that everything runs.
    "smoke": Experiment(
        _SMOKE,
        steps=60,
        length=128,
        evaluate_bytes=10_000,
        routing_tokens=4096,
        batch_sizes=(8, 64, 512),
    ),
    # About five minutes on two CPU cores: `make demo`.
    "demo": Experiment(
        models.moge_tiny(),
        steps=650,
        batch=8,
        length=128,
        # Less than for longer runs: at 4e-3 so few steps do not beat the control.
        optimizer=OptimizerConfig(learning_rate=2e-3),
    ),
    # Over an hour on two CPU cores: three seeds, 3.7 times the tokens of the demo.
    "cpu": Experiment(
        models.moge_tiny(), steps=2400, batch=8, length=128, seeds=(0, 1, 2), evaluate_bytes=400_000
    ),
    # Eight minutes per seed on one H100 or H200: 0.44 B parameters, the source of the packages that
    # are installed there.
    "gpu": Experiment(
        models.moge_small(),
        data="packages",
        steps=450,
        batch=32,
        length=2048,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        dtype="bfloat16",
        evaluate_bytes=2_000_000,
        routing_tokens=131_072,
        batch_sizes=(8, 16, 64, 256, 1024, 4096),
    ),
    # The published sizes: 72 billion parameters. Nobody has run this preset.
    "paper": Experiment(
        models.pangu_pro_moe(),
        steps=100_000,
        batch=1024,
        length=4096,
        optimizer=OptimizerConfig(learning_rate=3e-4, b2=0.95),
        aux_weight=0.001,
        dtype="bfloat16",
        remat="full",
        evaluate_bytes=10_000_000,
        routing_tokens=131_072,
    ),
}
