"""Selections to shards, and shards to batches, while training reads."""
