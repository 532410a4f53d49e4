"""One turn of the outer loop, phase by phase."""
