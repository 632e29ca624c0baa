"""Commands that plan and run a search."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from sweepcp.cli.app import Address, ExperimentName, Overrides


def plan(experiment: ExperimentName = "quickstart", overrides: Overrides = None) -> None:
    """Show what a search would run and cost, and every warning. Train nothing, write nothing."""
    from sweepcp.console.plan import show_plan
    from sweepcp.console.progress import make_console
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.search.plan import make_plan

    loaded, files = load_experiment(experiment, overrides or ())
    show_plan(make_console(), make_plan(loaded, files))


def search(
    experiment: ExperimentName = "quickstart",
    out: Annotated[
        Path | None, typer.Option(help="The run folder; by default runs/<name of the experiment>.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Short for --set budget.trials=N.")] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Run the trials of an experiment, or resume it, and show the front."""
    from sweepcp.console.front import show_front, show_next_commands
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.search.search import run_search

    if address is None:
        # Despite its name, this variable makes Ray bind to the loopback address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    settings = list(overrides or ())
    if trials is not None:
        settings.append(f"budget.trials={trials}")
    loaded, files = load_experiment(experiment, settings)
    folder = out or Path("runs") / loaded.name
    console = make_console()
    with ConsoleProgress(console) as progress:
        run = run_search(loaded, files, folder, progress=progress, address=address)
    if not run.done:
        reasons = sorted({trial.short_reason for trial in run.trials})
        typer.echo(f"No trial is done: {'; '.join(reasons)}", err=True)
        raise typer.Exit(1)
    show_front(console, run)
    show_next_commands(console, folder, experiment=experiment, overrides=overrides or ())


def schema(
    out: Annotated[Path | None, typer.Option(help="A file to write instead of printing.")] = None,
) -> None:
    """Write the JSON schema of experiment files, for completion and checks in an editor."""
    from sweepcp.config.experiment import json_schema
    from sweepcp.util.files import write_json

    content = json_schema()
    if out is None:
        typer.echo(json.dumps(content, indent=1))
    else:
        write_json(out, content)
