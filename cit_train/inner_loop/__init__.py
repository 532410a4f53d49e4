"""One update: from a batch to a gradient step."""
