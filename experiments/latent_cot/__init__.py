"""The experiment on latent chains of thought; `run` says what it does."""
