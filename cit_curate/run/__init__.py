"""A run folder: its ledger, its shards, and what can be asked of it."""
