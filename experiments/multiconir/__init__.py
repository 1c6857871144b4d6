"""MultiConIR: tuning on rule-made pairs, and where in a query poolings look."""
