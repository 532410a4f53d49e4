"""Readers of files of class names: plain lines, tables and JSON, and what is none of them."""
