"""Structured pruning: statistics, importance, plans, slicing, repair, re-initialization."""
