"""What distillation takes unless told otherwise."""

from pangu_jax.train.optimizer_config import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=3e-4)  # a student has learned already
KL_WEIGHT, LM_WEIGHT, HIDDEN_WEIGHT, TEMPERATURE = 1.0, 1.0, 0.0, 1.0
