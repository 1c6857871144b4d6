"""Training: optimiser, step, loop, metrics. Losses are given as functions."""
