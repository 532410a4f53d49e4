"""Developer and one-off entry points; not installed."""
