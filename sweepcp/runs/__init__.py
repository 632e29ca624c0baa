"""Run folders: records of trials, the Pareto front, the choice and its uncertainty."""
