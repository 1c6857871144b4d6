"""One package a published system: what it composes, what it measures, what it claims."""
