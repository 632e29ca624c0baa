"""Held-out text and lm-eval tasks, item by item."""
