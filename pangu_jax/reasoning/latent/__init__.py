"""Latent chain of thought: methods as short compositions over one scan, a file each."""
