"""The experiment on Pangu Embedded; `run` says what it does."""
