"""Ascend: the operators that its compiler accepts, its command line, and running it."""
