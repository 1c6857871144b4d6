"""Layers: each module has a spec and the pure function that reads parameters of that form."""
