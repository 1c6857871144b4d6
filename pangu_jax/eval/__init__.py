"""Measurements: perplexity, controls, load balance."""
