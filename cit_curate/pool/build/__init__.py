"""Building a new pool from sources."""
