"""Training: optimizer, step, loop, metrics. Losses are given as functions."""
