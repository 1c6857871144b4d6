"""One module a model family: its tensors' names and its config.json, each way."""
