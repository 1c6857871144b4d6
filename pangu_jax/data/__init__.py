"""Documents, tokenizers, packing and batches: numpy and grain, no jax arrays, no device."""
