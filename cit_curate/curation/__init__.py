"""From scanned captions to kept pairs."""
