"""Commands that show a run."""

from pathlib import Path
from typing import Annotated

import typer

from sweepcp.cli.app import (
    Knee,
    MaxRegression,
    RunFolder,
    ScalarWeights,
    echo_json,
    path_of,
    rule_from_options,
)
from sweepcp.util.paths import check_output_file


def front(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_of("--csv"), help="Write one row per trial to a CSV file."
        ),
    ] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: ScalarWeights = None,
) -> None:
    """Show base, trials, front and choice of a run, by its own rule or another."""
    from sweepcp.report.tables import run_as_dict, write_csv
    from sweepcp.runs.run_folder import read_run

    rule = rule_from_options(max_regression, knee, weights)
    loaded = read_run(run).with_rule(**rule)
    if csv is not None:
        check_output_file(csv, key="--csv")
        write_csv(loaded, csv)
    if as_json:
        echo_json(run_as_dict(loaded))
    elif csv is None:
        from sweepcp.console.front import show_front
        from sweepcp.console.progress import make_console

        show_front(make_console(), loaded)


def report(
    run: RunFolder,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_of("--html"),
            help="By default report.html in the run folder.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_of("--image"), help="Draw the front as .png, .svg or .pdf."
        ),
    ] = None,
    max_regression: MaxRegression = None,
    knee: Knee = False,
    weights: ScalarWeights = None,
) -> None:
    """Write a run as one self-contained page, or its front as an image.

    With --image alone, only the image is written.
    """
    from sweepcp.report.labels import choice_sentence
    from sweepcp.report.views import load_run

    rule = rule_from_options(max_regression, knee, weights)
    loaded = load_run(run).with_rule(**rule)
    page = html
    if html is None and image is None:
        page = run / "report.html"
    for key, file in {"--html": page, "--image": image}.items():
        if file is not None:
            check_output_file(file, key=key)
    # The image goes first: its file extension may be invalid, and then nothing must be written.
    if image is not None:
        from sweepcp.report.front_charts import front_chart
        from sweepcp.report.matplotlib_figures import save_image

        save_image(front_chart(loaded, loaded.labels), image)
    if page is not None:
        from sweepcp.report.page import write_report

        write_report(loaded, page)
    typer.echo(choice_sentence(loaded))
    typer.echo("\n".join(str(file) for file in (page, image) if file is not None))


def watch(
    run: RunFolder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on the loopback address; 0 for any.")
    ] = 8765,
) -> None:
    """Serve the report of a run in a browser while the search runs. The page refreshes itself."""
    from sweepcp.console.log import log_to_console
    from sweepcp.console.progress import make_console
    from sweepcp.report.server import serve

    with log_to_console(make_console()):
        serve(run, port)
