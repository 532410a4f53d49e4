"""One reader per layout of labelled images on disk."""
