"""Commands that build, inspect and mine corpora."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from sweepcp.cli.app import Address, BundleFolder, ExperimentName, Overrides, path_of
from sweepcp.util.paths import check_output_file, check_output_folder

data = typer.Typer(
    no_args_is_help=True,
    help="Corpora: build token stores, inspect them, mine domain text.",
)


@data.command()
def build(
    experiment: ExperimentName = "quickstart", overrides: Overrides = None, address: Address = None
) -> None:
    """Read, filter and tokenize every source of an experiment into its token store.

    `search` does the same where a store is missing. A store is built once and reused while the
    source is unchanged. A build that was stopped resumes.
    """
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.console.stores import show_stores
    from sweepcp.corpora.experiment import attributed_to_experiment, load_experiment
    from sweepcp.corpora.stores import build_stores

    loaded, files = load_experiment(experiment, overrides or ())
    console = make_console()
    with (
        ConsoleProgress(console) as progress,
        attributed_to_experiment(experiment, overrides or (), loaded),
    ):
        stores = build_stores(loaded, files, progress=progress, address=address)
    show_stores(console, list(stores.values()))
    for source in loaded.sources:
        if source.planned_tokens is not None:
            typer.echo(f"{source.name} is planned: there is nothing to build")


@data.command()
def check(
    experiment: ExperimentName = "quickstart",
    overrides: Overrides = None,
    address: Address = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_of("--write"),
            help="Write the overlapping documents, for `exclude` of a source.",
        ),
    ] = None,
) -> None:
    """Show sizes, languages, the base's loss, and training text that repeats items of the suites.

    Exit with status 1 if training documents contain items of a suite.
    """
    from sweepcp.console.check import show_check
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.corpora.check import check_corpora, write_overlaps
    from sweepcp.corpora.experiment import attributed_to_experiment, load_experiment
    from sweepcp.search.devices import local_device

    if write is not None:
        check_output_file(write, key="--write")
    loaded, files = load_experiment(experiment, overrides or ())
    console = make_console()
    with (
        ConsoleProgress(console) as progress,
        attributed_to_experiment(experiment, overrides or (), loaded),
    ):
        result = check_corpora(
            loaded,
            files,
            device=local_device(loaded.budget),
            progress=progress,
            address=address,
        )
    show_check(console, result)
    if write is not None:
        write_overlaps(write, result.overlaps)
    raise typer.Exit(1 if result.overlaps else 0)


@data.command()
def mine(
    experiment: Annotated[
        str,
        typer.Argument(metavar="EXPERIMENT", help="A file, or the name of a shipped experiment."),
    ],
    corpus: Annotated[str, typer.Option(help="The source to search for domain text.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=path_of("--out"),
            help="The folder to write. Label its sample.jsonl, then run again.",
        ),
    ],
    precision: Annotated[
        float, typer.Option(help="Share of the selected documents that are domain text.")
    ] = 0.9,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Find domain text in a general corpus with a classifier trained on the experiment's sources.

    Writes the selected documents, a source to paste into an experiment, the list that excludes them
    from the corpus, and a sample to label.
    """
    from sweepcp.console.mining import show_mining
    from sweepcp.console.progress import ConsoleProgress, make_console
    from sweepcp.corpora.experiment import attributed_to_experiment, load_experiment
    from sweepcp.corpora.mining import mine_corpus

    check_output_folder(out, key="--out")
    loaded, files = load_experiment(experiment, overrides or ())
    console = make_console()
    with (
        ConsoleProgress(console) as progress,
        attributed_to_experiment(experiment, overrides or (), loaded),
    ):
        result = mine_corpus(
            loaded.sources,
            files,
            corpus=corpus,
            out=out,
            precision=precision,
            progress=progress,
            address=address,
        )
    show_mining(console, result, out)


@data.command()
def mix(
    bundle: BundleFolder,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=path_of("--out"),
            help="The folder to write: a data set in the format of `datasets`.",
        ),
    ],
    rows: Annotated[
        str, typer.Option(help="`sequences`, or `documents`: what a sequence holds of each.")
    ] = "sequences",
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
) -> None:
    """Write a run's tokens in training order, for trainers that cannot mix by tokens.

    Needs 9 bytes per token on disk, and as much again while it is written.
    """
    from sweepcp.data.materialize import MixRows, materialize_mix
    from sweepcp.errors import InvalidInput
    from sweepcp.full_run.preflight import check_content, check_ready, stores_of_bundle
    from sweepcp.promote.bundle import load_bundle

    if rows not in get_args(MixRows):
        raise InvalidInput(
            file="data mix",
            key="--rows",
            found=rows,
            rule="sequences or documents",
            fix="pass one of the two",
        )
    check_output_folder(out, key="--out")
    loaded = load_bundle(bundle.absolute())
    check_ready(loaded)
    check_content(loaded)
    tokens = materialize_mix(
        loaded.bundle.recipe,
        stores_of_bundle(loaded.bundle),
        out=out.absolute(),
        rows=cast("MixRows", rows),
        workers=workers,
    )
    for source, count in tokens.items():
        typer.echo(f"{source}: {count:,} tokens")
    typer.echo(f"{out}")
