"""Print the front and the choice of a run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.console.scorecard import format_scalars, member_table
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

UNIT = "relative change of bits per byte against the base, in %; higher is better"
STATUSES = ("done", "stopped", "diverged", "failed")
COLUMNS = (
    "trial", "LR fraction", "domain share", "domain", "general", "domain*", "general*",
    "proposed by", "",
)  # fmt: skip
LEFT_COLUMNS = ("trial", "proposed by", "")


def show_front(console: Console, run: Run) -> None:
    """Print the front, the counts of trials, and the choice with its members."""
    console.print(front_table(run))
    note = "* on the reporting half of the items; the choice is made on the selection half"
    console.print(Text(note))
    console.print(Text(_summary_line(run)), style="dim")
    trial = run.chosen
    if trial is None:
        console.print(Text(_no_choice_line(run)), style="bold yellow")
    else:
        _show_choice(console, run, trial)


def front_table(run: Run) -> Table:
    """Return a table of the base, the front by domain gain, and the other done trials."""
    table = Table(
        title=f"Front of {run.experiment.name}",
        caption=UNIT,
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in LEFT_COLUMNS else "right")
    table.add_row("base", "", "", "0.00", "0.00", "0.00", "0.00", "", "")
    table.add_section()
    front = run.front
    for trial_id in front.ids:
        if trial_id == front.choice.id:
            table.add_row(*_front_row(run.by_id[trial_id]), "chosen", style="bold green")
        else:
            table.add_row(*_front_row(run.by_id[trial_id]), "•")
    table.add_section()
    for trial in run.done:
        if trial.id not in front.ids:
            table.add_row(*_front_row(trial), "", style="dim")
    return table


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


def _front_row(trial: Trial) -> list[str]:
    assert trial.scorecard is not None
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
    console.print(member_table(card, f"Trial {trial.id}"))
    shares = [f"{share.share:.1%} {share.source}" for share in trial.recipe.mixture.portions]
    line = Text(
        f"Choice ({run.rule}): trial {trial.id}, LR fraction {trial.recipe.lr_fraction:.4g}, "
        f"{', '.join(shares)}\n",
        "bold",
    )
    line.append(
        f"  {format_scalars(card.report)} on the reporting half (errors of evaluation only: one "
        "seed per trial)"
    )
    console.print(line, soft_wrap=True)
