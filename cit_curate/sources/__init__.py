"""Readers: each source becomes rows of one schema, once; later code never asks whence."""
