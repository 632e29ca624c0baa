"""One module per launcher: `render(export_input, plan)` returns the files that start a trainer."""
