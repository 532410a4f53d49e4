"""Models from and for others: pull, convert and push."""
