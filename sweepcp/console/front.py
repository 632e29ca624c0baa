"""Print the front and the choice of a run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sweepcp.console.scorecard import format_scalars, show_members
from sweepcp.console.tables import Column, Row, print_line, print_table
from sweepcp.runs.memory_use import smallest_halving
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

NOTE = (
    "relative change of bits per byte against the base, in %; higher is better\n"
    "* on the reporting half of the items; the choice is made on the selection half"
)
STATUSES = ("done", "stopped", "diverged", "failed")
COLUMNS = (
    Column(name="trial", is_text=True),
    Column(name="LR fraction", drop=1),
    Column(name="domain share", drop=2),
    Column(name="domain", drop=3),
    Column(name="general", drop=3),
    Column(name="domain*"),
    Column(name="general*"),
    Column(name="proposed by", is_text=True, drop=4),
    Column(name="", is_text=True),
)


def show_front(console: Console, run: Run) -> None:
    """Print the front, the counts of trials, what was halved, and the choice with its members."""
    print_table(console, f"Front of {run.experiment.name}", COLUMNS, front_rows(run), note=NOTE)
    print_line(console, _summary_line(run), "dim")
    if halving := smallest_halving(run.trials):
        print_line(console, f"{halving}.", "yellow")
    trial = run.chosen
    if trial is None:
        print_line(console, _no_choice_line(run), "bold yellow")
    else:
        _show_choice(console, run, trial)


def front_rows(run: Run) -> list[Row]:
    """Return the base, the front by domain gain, and the other done trials as rows of a table."""
    front = run.front
    base = ("base", "", "", "0.00", "0.00", "0.00", "0.00", "", "")
    rows = [Row(cells=base, ends_section=True)]
    for trial_id in front.ids:
        cells, ends = _front_cells(run.by_id[trial_id]), trial_id == front.ids[-1]
        if trial_id == front.choice.id:
            rows.append(Row(cells=(*cells, "chosen"), style="bold green", ends_section=ends))
        else:
            rows.append(Row(cells=(*cells, "•"), ends_section=ends))
    others = [trial for trial in run.done if trial.id not in front.ids]
    return rows + [Row(cells=(*_front_cells(trial), ""), style="dim") for trial in others]


def show_next_commands(
    console: Console, out: Path, *, experiment: str, overrides: Sequence[str]
) -> None:
    """Print commands to run after a search of `experiment` with `overrides`."""
    folder = shlex.quote(str(out))
    # A run resumes only with the settings that it started with.
    sets = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    commands = {
        f"sweepcp front {folder} --max-regression 1": "choose by another bound",
        f"sweepcp front {folder} --csv trials.csv": "write all trials as a table",
        f"sweepcp report {folder}": "write a report as one HTML file",
        f"sweepcp promote {folder} --target FILE-OR-NAME --out bundle": (
            "translate the choice to the full run"
        ),
        f"sweepcp search {shlex.quote(experiment)}{sets} --out {folder} --trials 32": (
            "resume with a larger budget"
        ),
    }
    console.print(Text("\nNext:"))
    for command, purpose in commands.items():
        console.print(Text(f"  {command}   # {purpose}"), soft_wrap=True)


def _front_cells(trial: Trial) -> list[str]:
    assert trial.scorecard is not None  # of every trial that is done
    select, report = trial.scorecard.select, trial.scorecard.report
    return [
        trial.id,
        f"{trial.recipe.lr_fraction:.3g}",
        f"{trial.recipe.domain_share:.1%}",
        f"{select.domain:+.2f}",
        f"{select.general:+.2f}",
        f"{report.domain:+.2f}±{report.domain_se:.2f}",
        f"{report.general:+.2f}±{report.general_se:.2f}",
        trial.proposed_by,
    ]


def _summary_line(run: Run) -> str:
    """Return the number of trials of each status, and the hypervolume."""
    counts = [
        f"{sum(trial.status == status for trial in run.trials)} {status}" for status in STATUSES
    ]
    reference = run.experiment.choose.reference
    return (
        f"{', '.join(counts)}; hypervolume {run.front.hypervolume:.1f} %² above "
        f"domain, general = ({reference.domain:g}, {reference.general:g}) %"
    )


def _no_choice_line(run: Run) -> str:
    nearest = run.chosen_or_nearest
    scores = ""
    if nearest is not None:
        scores = (
            f"; nearest is {nearest.id} with domain {nearest.domain:+.2f} %, "
            f"general {nearest.general:+.2f} %"
        )
    return f"No choice: no trial meets the rule ({run.rule}){scores}."


def _show_choice(console: Console, run: Run, trial: Trial) -> None:
    card = trial.scorecard
    assert card is not None
    show_members(console, card, f"Trial {trial.id}")
    shares = [f"{share.share:.1%} {share.source}" for share in trial.recipe.mixture.portions]
    choice = (
        f"Choice ({run.rule}): trial {trial.id}, LR fraction {trial.recipe.lr_fraction:.4g}, "
        f"{', '.join(shares)}"
    )
    print_line(console, choice, "bold")
    scores = (
        f"  {format_scalars(card.report)} on the reporting half (errors of evaluation only: one "
        "seed per trial)"
    )
    print_line(console, scores, "bold")
