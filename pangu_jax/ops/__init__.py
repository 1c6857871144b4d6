"""Numerical operators: one front door each, a reference, and faster forms chosen by shape."""
