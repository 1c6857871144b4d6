"""The functions behind `import pangu_jax`: what you do with a model from Python."""
