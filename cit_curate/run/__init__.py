"""A run folder: its ledger, its shards, and the queries, exports and reports made from it."""
