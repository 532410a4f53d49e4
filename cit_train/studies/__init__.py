"""Which pairs are worth training on: several ways to choose them, side by side over seeds."""
