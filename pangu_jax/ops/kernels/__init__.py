"""Kernels: the only files that import pallas, one per operation and back end."""
