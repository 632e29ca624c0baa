"""Schemas of the files that people write, and how such files are read."""
