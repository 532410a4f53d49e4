"""Class names, their prompts and vectors, and the stored index of the vectors."""
