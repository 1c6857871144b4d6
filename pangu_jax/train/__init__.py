"""Training: optimizer, step, loop, metrics. Losses are passed in as functions."""
