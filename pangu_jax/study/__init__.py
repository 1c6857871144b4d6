"""Shared parts of experiments: options, resumable cells, tables with spread, plots, reports."""
