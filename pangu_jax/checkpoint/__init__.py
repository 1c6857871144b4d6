"""Checkpoints: our own store, and the Hugging Face layout both ways."""
