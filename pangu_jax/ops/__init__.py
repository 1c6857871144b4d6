"""Numerical operators: one front door each, a reference, and faster implementations by shape."""
