"""Numerical operators: one front door each, a reference beside it, faster forms chosen by shape."""
