"""One reader per source of pairs: rows of one schema."""
