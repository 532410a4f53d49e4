"""Class names, their prompts, their vectors and the stored index of them."""
