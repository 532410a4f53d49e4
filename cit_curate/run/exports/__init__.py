"""Counts out of a run and into one, in the formats of other tools."""
