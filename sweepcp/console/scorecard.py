"""Print the scores of a model against the base model."""

from rich.console import Console

from sweepcp.console.tables import Column, Row, print_line, print_table
from sweepcp.scoring.scorecard import Scorecard, SplitScore

COLUMNS = (
    Column(name="suite", is_text=True, drop=2),
    Column(name="member", is_text=True),
    Column(name="unit", is_text=True, drop=3),
    Column(name="items", drop=4),
    Column(name="base", drop=1),
    Column(name="model", drop=1),
    Column(name="change"),
)


def show_scorecard(console: Console, card: Scorecard, name: str) -> None:
    """Print the members of the suites, and the scalars of both halves of the items."""
    show_members(console, card, name)
    for half, scores in (("selection", card.select), ("reporting", card.report)):
        line = f"{format_scalars(scores)} on the {half} half of the items"
        print_line(console, line)


def show_members(console: Console, card: Scorecard, name: str) -> None:
    """Print a table of the suites' members on the reporting half."""
    rows = []
    for member in card.report.members:
        unit = "%" if member.unit == "bits per byte" else "points"
        cells = (
            member.role,
            member.name,
            member.unit,
            str(member.items),
            f"{member.base:.3f}±{member.base_se:.3f}",
            f"{member.value:.3f}±{member.value_se:.3f}",
            f"{member.change:+.2f}±{member.change_se:.2f} {unit}",
        )
        rows.append(Row(cells=cells))
    title = f"{name} by member, on the reporting half of the items"
    print_table(console, title, COLUMNS, rows)


def format_scalars(scores: SplitScore) -> str:
    """Return both scalars of a half in %, with their standard errors."""
    domain = f"domain {scores.domain:+.2f} ± {scores.domain_se:.2f} %"
    return f"{domain}, general {scores.general:+.2f} ± {scores.general_se:.2f} %"
