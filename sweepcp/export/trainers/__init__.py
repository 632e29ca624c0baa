"""One module per trainer: `make_export_plan(export_input)` returns files and a start command."""
