"""Train a dual encoder on pairs that are curated while it trains."""
