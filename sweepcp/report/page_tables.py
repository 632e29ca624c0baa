"""Tables of the report page, as plain text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sweepcp.config.space import Choices, Range
from sweepcp.report.labels import MAIN_AXES, format_signed
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Cost, Trial
from sweepcp.runs.uncertainty import FrontCertainty
from sweepcp.scoring.scorecard import (
    LanguageScore,
    MemberScore,
    Scorecard,
    SplitScore,
)

SCORES = (
    "Scores ± standard error: relative change of bits per byte against the base in %; "
    "higher is better"
)


class Column(NamedTuple):
    """A column of a table. Its kind sets alignment, order and wrapping."""

    name: str
    kind: Literal["text", "number", "long"] = "text"


@dataclass(frozen=True)
class PageTable:
    """A table of strings."""

    caption: str
    columns: list[Column]
    rows: list[list[str]]
    chosen: int | None = None
    """Index of the row that is highlighted."""


LR_FRACTION = Column("LR fraction", "number")
DOMAIN_SHARE = Column("domain share, %", "number")
SCORE_COLUMNS = [
    Column(f"{score}, {split} half", "number")
    for split in ("selection", "reporting")
    for score in ("domain", "general")
]
MEMORY_COLUMNS = [
    Column("micro batch", "number"),
    Column("GPU memory, GiB", "number"),
    Column("measured / estimated memory", "number"),
]
P_FRONT = Column("P(front)", "number")
P_CHOSEN = Column("P(chosen)", "number")


def trial_table(run: Run, certainty: FrontCertainty | None) -> PageTable:
    """Return all finished trials."""
    axes = {name: axis for name, axis in run.experiment.space.axes.items() if name not in MAIN_AXES}
    columns = [
        Column("trial"),
        Column("status"),
        Column("proposed by"),
        LR_FRACTION,
        DOMAIN_SHARE,
        *(_axis_column(name, axis) for name, axis in axes.items()),
        *SCORE_COLUMNS,
        P_FRONT,
        P_CHOSEN,
        Column("seconds", "number"),
    ]
    rows = [_trial_row(run, trial, list(axes), certainty) for trial in run.trials]
    if any(trial.cost and trial.cost.memory_gib for trial in run.trials):
        columns += MEMORY_COLUMNS
        rows = [
            row + _memory_cells(trial.cost) for row, trial in zip(rows, run.trials, strict=True)
        ]
    ids = [trial.id for trial in run.trials]
    chosen = ids.index(run.front.choice.id) if run.front.choice.id else None
    return PageTable(f"All finished trials. {SCORES}", columns, rows, chosen)


def front_table(run: Run, trials: PageTable) -> PageTable:
    """Return the trials of the front: the main columns of their rows in the table of all trials."""
    columns = [Column("trial"), LR_FRACTION, DOMAIN_SHARE, *SCORE_COLUMNS, P_FRONT]
    indices = [trials.columns.index(column) for column in columns]
    row_of = {row[0]: row for row in trials.rows}
    ids = list(run.front.ids)
    rows = []
    for trial_id in ids:
        row = row_of[trial_id]
        rows.append([row[index] for index in indices])
    chosen = ids.index(run.front.choice.id) if run.front.choice.id else None
    return PageTable(f"The front. {SCORES}", columns, rows, chosen)


def member_table(trial: Trial) -> PageTable:
    """Return the members of a trial's suites on the reporting half."""
    columns = [
        Column("suite"),
        Column("member"),
        Column("language"),
        Column("unit"),
        Column("scoring"),
        Column("items", "number"),
        Column("documents", "number"),
        Column("base", "number"),
        Column(trial.id, "number"),
        Column("change", "number"),
    ]
    rows = []
    for member in _scorecard(trial).report.members:
        change = _format_change(member.change, member.change_se)
        rows.append([
            member.role,
            member.name,
            member.language,
            member.unit,
            member.scoring or "",
            str(member.items),
            str(member.documents),
            f"{member.base:.3f} ± {member.base_se:.3f}",
            f"{member.value:.3f} ± {member.value_se:.3f}",
            f"{change} {_change_unit(member)}",
        ])  # fmt: skip
    caption = f"Trial {trial.id} against the base by member, on the reporting half"
    return PageTable(caption, columns, rows)


def language_table(trial: Trial) -> PageTable:
    """Return the changes by suite and language: means with the weights of the suites."""
    columns = [
        Column("suite"),
        Column("language"),
        Column("unit"),
        Column("members", "number"),
        Column("change", "number"),
    ]
    rows = []
    for score in _scorecard(trial).report.languages:
        change = f"{_format_change(score.change, score.change_se)} {_change_unit(score)}"
        rows.append([score.role, score.language, score.unit, str(score.members), change])
    caption = f"Trial {trial.id} against the base by language, on the reporting half"
    return PageTable(caption, columns, rows)


def data_table(run: Run) -> PageTable:
    """Return the sources, and the tokens that the chosen or nearest trial read of each."""
    trial = run.chosen_or_nearest
    suffix = f" in trial {trial.id}" if trial else ""
    columns = [
        Column("source"),
        Column("role"),
        Column("language"),
        Column(f"share{suffix}, %", "number"),
        Column(f"tokens{suffix}", "number"),
        Column(f"epochs{suffix}", "number"),
        Column("fingerprint"),
    ]
    rows = []
    for source in run.experiment.sources:
        amounts = _amounts_of(trial, source.name) if trial else ["", "", ""]
        fingerprint = run.identity.sources.get(source.name, "")
        rows.append([source.name, source.role, source.language, *amounts, fingerprint])
    return PageTable("Sources", columns, rows)


def failure_table(run: Run) -> PageTable | None:
    """Return the trials without a score, with their reasons; None if there are none."""
    columns = [
        Column("trial"), Column("status"), LR_FRACTION, DOMAIN_SHARE, Column("reason", "long"),
    ]  # fmt: skip
    rows = [
        [
            trial.id,
            trial.status,
            _format_lr_fraction(trial),
            _format_domain_share(trial),
            (trial.reason or "").strip(),
        ]
        for trial in run.trials
        if trial.status != "done"
    ]
    return PageTable("Trials without a score", columns, rows) if rows else None


def _axis_column(name: str, axis: Range | Choices) -> Column:
    return Column(name, "number" if isinstance(axis, Range) else "text")


def _trial_row(
    run: Run, trial: Trial, axes: list[str], certainty: FrontCertainty | None
) -> list[str]:
    """Return a row of the table of all trials."""
    card, cost = trial.scorecard, trial.cost
    row = [
        trial.id,
        _status_text(run, trial),
        trial.proposed_by,
        _format_lr_fraction(trial),
        _format_domain_share(trial),
    ]
    for name in axes:
        value = trial.point[name]
        row.append(f"{value:.4g}" if isinstance(value, float) else str(value))
    row += _format_split(card.select if card else None)
    row += _format_split(card.report if card else None)
    row.append(_format_probability(certainty.on_front if certainty else {}, trial))
    row.append(_format_probability(certainty.chosen if certainty else {}, trial))
    row.append(f"{cost.train_seconds + cost.score_seconds:.0f}" if cost else "")
    return row


def _memory_cells(cost: Cost | None) -> list[str]:
    """Return the cells of `MEMORY_COLUMNS`; empty where nothing is recorded."""
    if cost is None:
        return [""] * len(MEMORY_COLUMNS)
    return [
        "" if cost.micro_batch is None else str(cost.micro_batch),
        "" if cost.memory_gib is None else f"{cost.memory_gib:.2f}",
        "" if cost.memory_ratio is None else f"{cost.memory_ratio:.2f}",
    ]


def _status_text(run: Run, trial: Trial) -> str:
    if trial.id == run.front.choice.id:
        return "chosen"
    return "on the front" if trial.id in run.front.ids else trial.status


def _amounts_of(trial: Trial, source: str) -> list[str]:
    """Return share, tokens and epochs of a source in a trial; empty where they are not recorded."""
    shares = {share.source: share.share for share in trial.recipe.mixture.portions}
    share = f"{100 * shares[source]:.1f}" if source in shares else ""
    if source not in trial.tokens_by_source:
        return [share, "", ""]
    tokens = trial.tokens_by_source[source]
    epochs = trial.epochs_by_source.get(source, 0)
    return [share, f"{tokens:,}", f"{epochs:.3g}"]


def _scorecard(trial: Trial) -> Scorecard:
    assert trial.scorecard is not None
    return trial.scorecard


def _change_unit(score: MemberScore | LanguageScore) -> str:
    return "%" if score.unit == "bits per byte" else "points"


def _format_lr_fraction(trial: Trial) -> str:
    return f"{trial.recipe.lr_fraction:.4g}"


def _format_domain_share(trial: Trial) -> str:
    return f"{100 * trial.recipe.domain_share:.1f}"


def _format_split(scores: SplitScore | None) -> list[str]:
    """Return the domain and the general score of a half."""
    if scores is None:
        return ["", ""]
    return [
        _format_change(scores.domain, scores.domain_se),
        _format_change(scores.general, scores.general_se),
    ]


def _format_change(value: float, error: float) -> str:
    return f"{format_signed(value)} ± {error:.2f}"


def _format_probability(shares: Mapping[str, float], trial: Trial) -> str:
    return f"{shares[trial.id]:.2f}" if trial.id in shares else ""
