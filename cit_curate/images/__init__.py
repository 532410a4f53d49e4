"""From an image's uri to a checked picture, never trusting a byte of it."""
