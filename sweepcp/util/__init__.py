"""Helpers without knowledge of recipes or models: files, records, locks, parallel work."""
