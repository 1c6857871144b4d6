"""Models: `spec(cfg)` says what the parameters are, `apply(params, ...)` is the forward pass."""
