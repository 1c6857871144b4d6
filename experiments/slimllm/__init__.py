"""The experiment on SlimLLM; `run` says what it does."""
