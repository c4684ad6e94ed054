"""Helpers that the examples and benchmarks have in common."""
