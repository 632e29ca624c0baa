"""The command-line application, and the arguments that several commands share."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import sweepcp
from sweepcp.errors import InvalidInput, located
from sweepcp.util.paths import user_path

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def path_of(key: str) -> Callable[[str], Path]:
    """Return the parser of the paths that an option or argument takes; `key` is its name."""

    def path(value: str) -> Path:
        with located("", key):
            return user_path(value, folder=Path())

    return path


ExperimentName = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="A file, or the name of a shipped experiment.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: budget.tokens=65536"),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster; by default this machine.")
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", parser=path_of("RUN"), help="A folder that `sweepcp search` wrote."
    ),
]
BundleFolder = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", parser=path_of("BUNDLE"), help="A folder that `sweepcp promote` wrote."
    ),
]
MaxRegression = Annotated[
    float | None,
    typer.Option(metavar="X", help="Choose most domain gain, general regression at most X %."),
]
Knee = Annotated[bool, typer.Option("--knee", help="Choose the knee of the front.")]
ScalarWeights = Annotated[
    str | None,
    typer.Option("--weights", metavar="D,G", help="Choose the largest D·domain + G·general."),
]


def echo_json(content: Any) -> None:
    """Print JSON, with escapes where standard output cannot print a character as it is."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(content, indent=1)
    typer.echo(text)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"sweepcp {sweepcp.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # typer passes it to the callback
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Find the LR fraction and replay share of a continued-pretraining run on proxy models."""


def rule_from_options(
    max_regression: float | None, knee: bool, weights: str | None
) -> dict[str, Any]:
    """Return the rule that the options state, for `Run.with_rule`; empty if they state none."""
    rule: dict[str, Any] = {}
    if max_regression is not None:
        rule["max_regression"] = max_regression
    if knee:
        rule["knee"] = True
    if weights is not None:
        try:
            domain, general = (float(number) for number in weights.split(","))
        except ValueError:
            raise InvalidInput(
                file="--weights",
                key="--weights",
                found=weights,
                rule="two numbers, separated by a comma",
                fix="write --weights 1,2",
            ) from None
        rule["weights"] = {"domain": domain, "general": general}
    return rule
