"""The experiment on TimePro; `run` says what it does."""
