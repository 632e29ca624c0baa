"""Search recipes: Optuna proposes, Ray Tune runs, the run folder records."""
