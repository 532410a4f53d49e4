"""Choose the image-caption pairs worth training on; usable without ever training."""
