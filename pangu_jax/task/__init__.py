"""What one does with a model from Python: the functions that `import pangu_jax` offers."""
