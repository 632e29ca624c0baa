"""What a person sees in the terminal: progress, the plan, the front. Every number has its unit."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.console.progress import STATUS_STYLES

if TYPE_CHECKING:
    from sweepcp.corpora.mining import MiningResult
    from sweepcp.data.token_store import TokenStore
    from sweepcp.runs.run_folder import Run
    from sweepcp.runs.trial import Trial
    from sweepcp.scoring.scorecard import Scorecard, SplitScore


UNIT = "relative change of bits per byte against the base, in %; higher is better"


def store_table(stores: list[TokenStore]) -> Table:
    """What each token store holds, and where it is."""
    table = Table(title="Token stores", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "documents", "MB of text", "tokens", "held out", "store"):
        table.add_column(
            name, justify="left" if name in ("source", "store") else "right", overflow="fold"
        )
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


def show_mining(console: Console, result: MiningResult, out: Path) -> None:
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
    console.print(
        Text(
            f"\nIn {out}: documents/, source.yaml to paste, exclude.jsonl for the corpus, report.json."
        )
    )
    if not result.labelled_precision:
        console.print(
            Text(
                f"Better: set label to true or false in {out / 'sample.jsonl'}, and run the same again."
            )
        )


def front_table(run: Run) -> Table:
    """The base, the front from least to most domain gain, and the other done trials by number."""
    title = f"Front of {run.experiment.name}"
    table = Table(
        title=title, caption=UNIT, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in (
        "trial",
        "LR fraction",
        "domain share",
        "domain",
        "general",
        "domain*",
        "general*",
        "proposed by",
        "",
    ):
        table.add_column(name, justify="left" if name in ("trial", "proposed by", "") else "right")
    table.add_row("base", "", "", "0.00", "0.00", "0.00", "0.00", "", "")
    front, by_id = run.front, run.by_id
    others = [t.id for t in run.trials if t.status == "done" and t.id not in front.ids]
    for ids, style in ((front.ids, ""), (others, "dim")):
        table.add_section()
        for trial_id in ids:
            chosen = trial_id == front.choice.id
            table.add_row(
                *_front_row(by_id[trial_id], chosen, style == ""),
                style="bold green" if chosen else style,
            )
    return table


def _front_row(trial: Trial, chosen: bool, on_front: bool) -> list[str]:
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


def _format_scalars(half: SplitScore) -> str:
    return f"domain {half.domain:+.2f} ± {half.domain_se:.2f} %, general {half.general:+.2f} ± {half.general_se:.2f} %"


def show_scorecard(console: Console, card: Scorecard, name: str) -> None:
    """A model against the base."""
    console.print(member_table(card, name))
    for half, what in ((card.select, "chosen on"), (card.report, "not chosen on")):
        console.print(
            Text(f"{_format_scalars(half)} on the half of the items that is {what}"), soft_wrap=True
        )


def show_front(console: Console, run: Run) -> None:
    """Tables, choice and counts."""
    result = run.front
    console.print(front_table(run))
    console.print(
        Text(
            "Chosen on one half of the items (domain, general), reported on the other (domain*, general*)."
        )
    )
    counts = ", ".join(f"{sum(t.status == s for t in run.trials)} {s}" for s in STATUS_STYLES)
    reference = f"({result.reference['domain']:g}, {result.reference['general']:g})"
    console.print(
        Text(
            f"{counts}; hypervolume {result.hypervolume:.1f} %² above domain, general = {reference} %"
        ),
        style="dim",
    )
    choice = result.choice
    if choice.id is None:
        near = run.chosen_or_nearest
        what = (
            f"; nearest is {near.id} with domain {near.domain:+.2f} %, general {near.general:+.2f} %"
            if near
            else ""
        )
        console.print(
            Text(f"No choice: no trial meets the rule ({choice.rule}){what}."), style="bold yellow"
        )
        return
    trial = run.by_id[choice.id]
    card = trial.scorecard
    assert card is not None
    console.print(member_table(card, f"Trial {trial.id}"))
    shares = ", ".join(f"{p.share:.1%} {p.source}" for p in trial.recipe.mixture.portions)
    line = Text(
        f"Choice ({choice.rule}): trial {trial.id}, LR fraction {trial.recipe.lr_fraction:.4g}, {shares}\n",
        "bold",
    )
    line.append(
        f"  {_format_scalars(card.report)} on the reporting half (errors of evaluation only: one seed a trial)"
    )
    console.print(line, soft_wrap=True)


def show_next_commands(console: Console, out: Path, experiment: str) -> None:
    """Commands to type after a search."""
    folder = shlex.quote(str(out))
    console.print(Text("\nNext:"))
    for command, why in (
        (f"sweepcp front {folder} --max-regression 1", "choose by another bound"),
        (f"sweepcp front {folder} --csv trials.csv", "every trial as a table"),
        (f"sweepcp report {folder}", "one page to read and to forward"),
        (
            f"sweepcp promote {folder} --target FILE-OR-NAME --out bundle",
            "the choice as a full run under ZeRO-3",
        ),
        (
            f"sweepcp search {shlex.quote(experiment)} --out {folder} --trials 32",
            "go on with a larger budget",
        ),
    ):
        console.print(Text(f"  {command}   # {why}"), soft_wrap=True)
