"""Looking at a run: tables, charts, the page."""
