"""Models from elsewhere, and models for others: pull and push."""
