"""The pool on disk, and the order in which it is scanned."""
