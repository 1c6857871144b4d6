"""pangu_jax: grouped experts, pruning, forecasting and reasoning methods as pure functions."""

__version__ = "0.1.0"
