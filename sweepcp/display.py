"""What a person sees in the terminal: progress, the plan, the front. Every number has its unit."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # only named here: they would take longer to import than most commands take
    from sweepcp.data.mine import Mined
    from sweepcp.data.store import Store
    from sweepcp.run import Run
    from sweepcp.scorecard import HalfScore, Scorecard
    from sweepcp.space import Point
    from sweepcp.trial import Proposer, Trial

UNIT = "relative change of bits per byte against the base, in %; higher is better"
COLOURS = {"done": "green", "stopped": "yellow", "diverged": "magenta", "failed": "red"}


class Screen:
    """Progress of a search: bars in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.fields[title]:<6}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}
        self.of = 0

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """One line of its own."""
        self.console.print(Text(f"[{self._clock()}] {text}"), soft_wrap=True)

    def stage(self, name: str, done: int, of: int, text: str) -> None:
        """Move the bar of a stage before the search."""
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(text, total=of, title=name)
        self.progress.update(self.bars[name], completed=done, total=of, description=text)
        if self.progress.disable and text and time.monotonic() - self.said.get(name, -60.0) > 15:
            self.said[name] = time.monotonic()
            self.note(f"{name} {done}/{of}: {text}")

    def trials(self, finished: int, of: int) -> None:
        """Show how many trials there are, and how many a continued run already has."""
        self.of = of
        self.bars["trials"] = self.progress.add_task("", total=of, completed=finished, title="trials")
        if finished:
            self.note(f"{finished} trials are finished and stay; {max(0, of - finished)} to run")

    def trial_started(self, trial_id: str, point: Point, by: Proposer) -> None:
        description = f"{by}: {_point(point)}"
        self.bars[trial_id] = self.progress.add_task(description, total=1, title=f" {trial_id}")

    def trial_stepped(self, trial_id: str, step: int, steps: int) -> None:
        self.progress.update(self.bars[trial_id], completed=step, total=steps)

    def trial_finished(self, trial: Trial) -> None:
        self.progress.remove_task(self.bars.pop(trial.id))
        self.progress.advance(self.bars["trials"])
        line = Text(f"[{self._clock()}] {trial.id} ")
        line.append(f"{trial.status:<8}", COLOURS[trial.status])
        if trial.status == "done":
            line.append(f" domain {trial.domain:+6.2f} %  general {trial.general:+6.2f} %")
        line.append(f"  {_point(trial.point)}  ({trial.proposed_by})")
        if trial.why:
            line.append(f"  {trial.why}", "red")
        self.console.print(line, soft_wrap=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02}"


def _point(point: Point) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in point.items())


def store_table(stores: list[Store]) -> Table:
    """What each token store holds, and where it is."""
    table = Table(title="Token stores", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "documents", "MB of text", "tokens", "held out", "store"):
        table.add_column(name, justify="left" if name in ("source", "store") else "right", overflow="fold")
    for store in stores:
        train, held_out = store.meta["train"], store.meta["held_out"]
        table.add_row(
            store.source,
            f"{train['documents']:,}",
            f"{train['bytes'] / 1e6:,.1f}",
            f"{train['tokens']:,}",
            f"{held_out['documents']:,}",
            str(store.path),
        )
    return table


def show_mined(console: Console, result: Mined, out: Path) -> None:
    """What was mined, how sure that is, and what to do with it."""
    low, high = result.prevalence_interval
    lines = [
        f"learnt from {', '.join(f'{count:,} {name}' for name, count in result.training.items())} documents",
        f"prevalence  {result.prevalence:.3%} of {result.documents:,} documents are domain (95 %: {low:.3%} to "
        f"{high:.3%}), from {result.prevalence_from}",
        f"selected    {result.selected:,} documents with log odds of {result.threshold:.2f} and more",
        f"predicted   precision {result.precision:.1%} at that prevalence, recall {result.recall:.1%}",
        f"held out    {', '.join(f'{share:.2%} of {name}' for name, share in result.by_source.items())} reach that",
        f"calibration Brier score {result.brier:.4f}; predicted → observed: "
        + ", ".join(f"{p:.2f} → {o:.2f} ({n:,})" for p, o, n in result.calibration),
    ]
    if result.labelled_precision:
        share, count = result.labelled_precision
        lines.append(f"labelled    {share:.1%} of {count} selected documents are domain")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"\nIn {out}: documents/, source.yaml to paste, exclude.jsonl for the corpus, report.json."))
    if not result.labelled_precision:
        console.print(Text(f"Better: set label to true or false in {out / 'sample.jsonl'}, and run the same again."))


def front_table(run: Run) -> Table:
    """The base, the front from least to most domain gain, and the other done trials by number."""
    title = f"Front of {run.experiment['name']}"
    table = Table(title=title, caption=UNIT, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "LR fraction", "domain share", "domain", "general", "domain*", "general*", "proposed by", ""):
        table.add_column(name, justify="left" if name in ("trial", "proposed by", "") else "right")
    table.add_row("base", "", "", "0.00", "0.00", "0.00", "0.00", "", "")
    front, by_id = run.front, run.by_id
    others = [t.id for t in run.trials if t.status == "done" and t.id not in front.ids]
    for ids, style in ((front.ids, ""), (others, "dim")):
        table.add_section()
        for trial_id in ids:
            chosen = trial_id == front.choice.id
            table.add_row(*_cells(by_id[trial_id], chosen, style == ""), style="bold green" if chosen else style)
    return table


def _cells(trial: Trial, chosen: bool, on_front: bool) -> list[str]:
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
        "chosen" if chosen else "•" if on_front else "",
    ]


def member_table(card: Scorecard, name: str) -> Table:
    """What the scalars of a model are made of, on the reporting half."""
    title = f"{name} by member, on the half that was not chosen on"
    table = Table(title=title, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("suite", "member", "unit", "items", "base", "model", "change"):
        left = column in ("suite", "member", "unit")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for m in card.report.members:
        unit = "%" if m.unit == "bits per byte" else "points"
        table.add_row(
            m.role,
            m.name,
            m.unit,
            str(m.items),
            f"{m.base:.3f}±{m.base_se:.3f}",
            f"{m.value:.3f}±{m.value_se:.3f}",
            f"{m.change:+.2f}±{m.change_se:.2f} {unit}",
        )
    return table


def _scalars(half: HalfScore) -> str:
    return f"domain {half.domain:+.2f} ± {half.domain_se:.2f} %, general {half.general:+.2f} ± {half.general_se:.2f} %"


def show_card(console: Console, card: Scorecard, name: str) -> None:
    """A model against the base."""
    console.print(member_table(card, name))
    for half, what in ((card.select, "chosen on"), (card.report, "not chosen on")):
        console.print(Text(f"{_scalars(half)} on the half of the items that is {what}"), soft_wrap=True)


def show_front(console: Console, run: Run) -> None:
    """Tables, choice and counts."""
    result = run.front
    console.print(front_table(run))
    console.print(Text("Chosen on one half of the items (domain, general), reported on the other (domain*, general*)."))
    counts = ", ".join(f"{sum(t.status == s for t in run.trials)} {s}" for s in COLOURS)
    reference = f"({result.reference['domain']:g}, {result.reference['general']:g})"
    console.print(
        Text(f"{counts}; hypervolume {result.hypervolume:.1f} %² above domain, general = {reference} %"), style="dim"
    )
    choice = result.choice
    if choice.id is None:
        near = run.chosen_or_nearest
        what = f"; nearest is {near.id} with domain {near.domain:+.2f} %, general {near.general:+.2f} %" if near else ""
        console.print(Text(f"No choice: no trial meets the rule ({choice.rule}){what}."), style="bold yellow")
        return
    trial = run.by_id[choice.id]
    card = trial.scorecard
    assert card is not None
    console.print(member_table(card, f"Trial {trial.id}"))
    shares = ", ".join(f"{p.share:.1%} {p.source}" for p in trial.recipe.mixture.portions)
    line = Text(
        f"Choice ({choice.rule}): trial {trial.id}, LR fraction {trial.recipe.lr_fraction:.4g}, {shares}\n", "bold"
    )
    line.append(f"  {_scalars(card.report)} on the reporting half (errors of evaluation only: one seed a trial)")
    console.print(line, soft_wrap=True)


def show_next(console: Console, out: Path, experiment: str) -> None:
    """Commands to type after a search."""
    folder = shlex.quote(str(out))
    console.print(Text("\nNext:"))
    for command, why in (
        (f"sweepcp front {folder} --max-regression 1", "choose by another bound"),
        (f"sweepcp front {folder} --csv trials.csv", "every trial as a table"),
        (f"sweepcp report {folder}", "one page to read and to forward"),
        (f"sweepcp promote {folder} --target FILE-OR-NAME --out bundle", "the choice as a full run under ZeRO-3"),
        (f"sweepcp search {shlex.quote(experiment)} --out {folder} --trials 32", "go on with a larger budget"),
    ):
        console.print(Text(f"  {command}   # {why}"), soft_wrap=True)


def make_console() -> Console:
    """The terminal as it is; 110 columns where there is none, so that a log is readable."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=110)
