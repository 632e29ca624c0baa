"""Commands that plan and run a search."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sweepcp.cli.app import Address, ExperimentName, Overrides, path_of
from sweepcp.util.garbage import no_garbage_collection
from sweepcp.util.paths import check_output_file, check_output_folder
from sweepcp.util.ray_setup import check_cluster, prepare_local_ray


def plan(experiment: ExperimentName = "quickstart", overrides: Overrides = None) -> None:
    """Show what a search would run and cost, and every warning. Train nothing, write nothing."""
    from sweepcp.console.plan import show_plan
    from sweepcp.console.progress import make_console
    from sweepcp.corpora.experiment import attributed_to_experiment, load_experiment
    from sweepcp.search.devices import check_devices
    from sweepcp.search.plan import make_plan
    from sweepcp.search.readiness import check_readiness
    from sweepcp.util.gpus import visible_gpus

    loaded, files = load_experiment(experiment, overrides or ())
    with attributed_to_experiment(experiment, overrides or (), loaded):
        notes = check_devices(loaded, visible_gpus())
        made = make_plan(loaded, files)
        made.warnings.extend(notes)
        made.warnings.extend(check_readiness(loaded, may_fetch=False))
    show_plan(make_console(), made)


def search(
    experiment: ExperimentName = "quickstart",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=path_of("--out"),
            help="The run folder; by default runs/<name of the experiment>.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Short for --set budget.trials=N.")] = None,
    overrides: Overrides = None,
    address: Address = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials again, at their points.")
    ] = False,
) -> None:
    """Run the trials of an experiment, or resume it, and show the front."""
    with no_garbage_collection():
        from sweepcp.console.front import show_front, show_next_commands
        from sweepcp.console.progress import ConsoleProgress, make_console
        from sweepcp.corpora.experiment import attributed_to_experiment, load_experiment
        from sweepcp.search.search import run_search

    settings = list(overrides or ())
    if trials is not None:
        settings.append(f"budget.trials={trials}")
    loaded, files = load_experiment(experiment, settings)
    folder = out or Path("runs") / loaded.name
    check_output_folder(folder, key="--out")
    console = make_console()
    with (
        ConsoleProgress(console) as progress,
        attributed_to_experiment(experiment, settings, loaded),
    ):
        if address is None:
            prepare_local_ray()
        else:  # before stores and base are built
            check_cluster(address)
        run = run_search(
            loaded,
            files,
            folder,
            progress=progress,
            address=address,
            retry_failed=retry_failed,
        )
    if not run.done:
        typer.echo("No trial is done:", err=True)
        reasons = Counter(f"{trial.status}: {trial.short_reason}" for trial in run.trials)
        for reason, count in reasons.items():
            typer.echo(f"  {count} {reason}", err=True)
        raise typer.Exit(1)
    show_front(console, run)
    show_next_commands(console, folder, experiment=experiment, overrides=overrides or ())


def schema(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_of("--out"), help="A file to write instead of printing."
        ),
    ] = None,
) -> None:
    """Write the JSON schema of experiment files, for completion and checks in an editor."""
    from sweepcp.config.experiment import json_schema
    from sweepcp.util.files import write_json

    content = json_schema()
    if out is None:
        typer.echo(json.dumps(content, indent=1))
    else:
        check_output_file(out, key="--out")
        write_json(out, content)
