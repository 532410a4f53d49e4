"""Zero-shot evaluation: tasks, prompts, metrics and class predictions."""
