"""YFCC100M as a source: its metadata file, its lists of image ids and its texts."""
