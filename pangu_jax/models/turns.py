"""How often the layers of a thinker may run."""

MOST_TURNS = 1000
