"""Aggregation rules: n updates in, one out."""
