"""Models: `spec(cfg)` describes the parameters, `apply(params, ...)` is the forward pass."""
