"""From a launch bundle to the files of the trainer and of the launcher that a team already runs."""
