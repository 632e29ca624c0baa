"""One module per trainer: `make_plan(export_input)` returns its files and its start command."""
