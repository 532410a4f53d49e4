"""Class names as metadata entries."""
