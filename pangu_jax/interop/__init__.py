"""Bridges to other libraries' module systems."""
