"""Promotion: the recipe of a trial, translated to the target of the full run as a launch bundle."""
