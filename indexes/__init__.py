"""Nearest metadata: vectors in, ids and similarities out, one index per encoder version."""
