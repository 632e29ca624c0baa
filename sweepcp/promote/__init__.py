"""From a recipe to the launch bundle of a full run."""
