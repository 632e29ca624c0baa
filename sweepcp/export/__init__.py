"""Export of a launch bundle as files for the trainer and the launcher that a team already uses."""
