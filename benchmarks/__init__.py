"""Benchmarks: `make bench` writes benchmarks/results.json, a flat map from key to number."""
