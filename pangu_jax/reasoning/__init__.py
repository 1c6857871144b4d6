"""Learning to reason: code that models write is run, answers judged, checkpoints merged."""
