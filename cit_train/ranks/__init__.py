"""The processes of a run: who lives, who stops, and how it ended."""
