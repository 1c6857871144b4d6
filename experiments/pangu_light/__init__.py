"""The experiment on Pangu Light; `run` says what it does."""
