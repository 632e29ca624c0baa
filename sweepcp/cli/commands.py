"""The command-line application with all of its commands."""

from sweepcp.cli.app import app
from sweepcp.cli.data import data
from sweepcp.cli.full_run import export, promote, score, train
from sweepcp.cli.report import front, report, watch
from sweepcp.cli.search import plan, schema, search

__all__ = ["app"]

app.add_typer(data, name="data")
for command in (plan, search, front, report, watch, promote, train, score, export, schema):
    app.command()(command)
