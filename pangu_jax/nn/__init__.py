"""Layers: each module has a spec and the pure function that applies its parameters."""
