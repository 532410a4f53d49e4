"""Benchmarks, and the cost model that they feed (docs/scale.md)."""
