"""The entry point: register every command, run one, and turn errors into exit statuses."""

import sys

import typer

from sweepcp.cli.app import app, launcher_rank
from sweepcp.cli.data import data
from sweepcp.cli.full_run import export, promote, score, train
from sweepcp.cli.report import front, report, watch
from sweepcp.cli.search import plan, schema, search
from sweepcp.errors import BaseNotScored, InvalidInput, Stopped

app.add_typer(data, name="data")
for command in (plan, search, front, report, watch, promote, train, score, export, schema):
    app.command()(command)

RESUME = "Stopped. Finished work is kept. Run the same command to resume."


def main() -> None:
    """Run the command line.

    Exit statuses: 0 success, 1 failure, 2 invalid input, 3 a full run that diverged or exceeded its
    bound, 128 + signal after SIGINT, SIGTERM or SIGUSR2.
    """
    rank = launcher_rank()
    try:
        app()
    except InvalidInput as error:
        on_rank = "" if rank == "0" else f" on rank {rank}"
        typer.echo(f"Error{on_rank}: {error}", err=True)
        sys.exit(2)
    except BaseNotScored as error:
        typer.echo(f"Error: the base cannot be scored: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo(RESUME, err=True)
        sys.exit(130)
    except Stopped as stop:
        if rank == "0":
            typer.echo(RESUME, err=True)
        sys.exit(128 + stop.signal)
