"""Scores of a model: held-out text, lm-eval tasks, and the scorecard against the base."""
