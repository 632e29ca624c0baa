"""Print the scores of a model against the base model."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.scoring.scorecard import Scorecard, SplitScore

LEFT_COLUMNS = ("suite", "member", "unit")


def show_scorecard(console: Console, card: Scorecard, name: str) -> None:
    """Print the members of the suites, and the scalars of both halves of the items."""
    console.print(member_table(card, name))
    for half, scores in (("selection", card.select), ("reporting", card.report)):
        line = f"{format_scalars(scores)} on the {half} half of the items"
        console.print(Text(line), soft_wrap=True)


def member_table(card: Scorecard, name: str) -> Table:
    """Return a table of the suites' members on the reporting half."""
    title = f"{name} by member, on the reporting half of the items"
    table = Table(title=title, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("suite", "member", "unit", "items", "base", "model", "change"):
        table.add_column(
            column, justify="left" if column in LEFT_COLUMNS else "right", overflow="fold"
        )
    for member in card.report.members:
        unit = "%" if member.unit == "bits per byte" else "points"
        table.add_row(
            member.role,
            member.name,
            member.unit,
            str(member.items),
            f"{member.base:.3f}±{member.base_se:.3f}",
            f"{member.value:.3f}±{member.value_se:.3f}",
            f"{member.change:+.2f}±{member.change_se:.2f} {unit}",
        )
    return table


def format_scalars(scores: SplitScore) -> str:
    """Return both scalars of a half in %, with their standard errors."""
    domain = f"domain {scores.domain:+.2f} ± {scores.domain_se:.2f} %"
    return f"{domain}, general {scores.general:+.2f} ± {scores.general_se:.2f} %"
