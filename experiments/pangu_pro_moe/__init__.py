"""The experiment on Pangu Pro MoE; `run` says what it does."""
