"""Layers: each module has a spec and a pure function that applies its parameters."""
