"""Generation: sampling, prefill and decoding on a static key-value cache."""
