"""Presets: how long is tuned, on how many pairs at once, and what is measured."""

import dataclasses

from pangu_jax.data.tokenizer import Tokenizer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.pooling_config import Pooling
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig
from pangu_jax.train.optimizer_config import OptimizerConfig

HEAD_DIM = 32


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One tuning with its controls, and one study of poolings.

    Attributes:
      steps: optimizer steps of a tuning.
      batch: pairs per step, which are compared all at once.
      accumulate: parts that a batch is embedded in (cached gradients).
      negatives: hard negatives of each pair.
      length: tokens that texts are cut to in training.
      temperature: of the loss.
      tuning: the optimizer of the tuning.
      seeds: of the pairs; the figures of each stand in the report.
      rows: rows of each file that are measured; None is all.
      measured_batch: texts embedded at once.
      orders: random orders of conditions in the study of poolings.
      poolings: those studied of the encoder that is tuned.
      decoder_poolings: those studied of --decoder.
      causal_poolings: those that causal encoders are trained, and studied, with.
      causal: width and layers of a causal encoder.
      causal_steps: optimizer steps of its training, from scratch.
      causal_training: the optimizer of it.
      dtype: type of the activations in training; all is measured in float32.
    """

    steps: int
    batch: int = 128
    accumulate: int = 1
    negatives: int = 4
    length: int = 160
    temperature: float = 0.05
    tuning: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, weight_decay=0.01)
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int | None = None
    measured_batch: int = 256
    orders: int = 4
    poolings: tuple[Pooling, ...] = ("mean", "cls", "weighted", "last", "max")
    decoder_poolings: tuple[Pooling, ...] = ("mean", "weighted", "last")
    causal_poolings: tuple[Pooling, ...] = ("mean", "last")
    causal: tuple[int, int] = (256, 4)
    causal_steps: int = 300
    causal_training: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    dtype: str = "float32"


def causal_encoder(
    experiment: Experiment, tokenizer: Tokenizer, pooling: Pooling
) -> EmbedderConfig:
    """A small model whose tokens see no later ones, with the vocabulary of the tuned encoder."""
    width, layers = experiment.causal
    layer = LayerConfig(AttentionConfig(width // HEAD_DIM, 1, HEAD_DIM), mlp=MlpConfig(4 * width))
    decoder = DecoderConfig(
        tokenizer.vocab_size, width, (layer,) * layers, tied=True, max_length=256
    )
    return EmbedderConfig(decoder, pooling=pooling, normalize=True, text_length=256)


PRESETS: dict[str, Experiment] = {
    # With a random model of one layer, a minute on two CPU cores: shows that everything runs.
    "smoke": Experiment(
        2,
        batch=8,
        accumulate=2,
        negatives=2,
        seeds=(0,),
        rows=4,
        measured_batch=16,
        orders=1,
        poolings=("mean", "last"),
        decoder_poolings=("mean", "last"),
        causal=(64, 1),
        causal_steps=2,
    ),
    "cpu": Experiment(60, batch=32, accumulate=2, seeds=(0,), causal=(128, 2), causal_steps=300),
    # One GPU: an H200 took eight minutes without the causal encoders.
    "gpu": Experiment(150, dtype="bfloat16"),
    "paper": Experiment(150),
}
