"""The command line: a short file per command, and what each takes in `options`."""
