"""One module per model family: its tensors' names and its config.json, each way."""
