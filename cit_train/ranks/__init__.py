"""The processes of a run: which are alive, when they stop, and how the run ended."""
