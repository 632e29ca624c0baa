"""Print progress and results to the terminal."""
