"""Captions to vectors, under one fixed version of a text tower."""
