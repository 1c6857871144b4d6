"""pangu_jax: grouped experts, structured pruning, forecasting and reasoning methods as pure JAX functions."""

__version__ = "0.1.0"
