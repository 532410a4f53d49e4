"""A new pool, made out of sources."""
