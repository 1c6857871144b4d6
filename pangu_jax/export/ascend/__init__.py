"""Ascend: which operators its compiler takes, what it is called with, and calling it."""
