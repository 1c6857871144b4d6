"""Sharding as a value: meshes, rule tables, and the layout that joins them."""
