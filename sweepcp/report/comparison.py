"""Chart that compares two runs: their fronts, and the recipes that both tried."""

from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from sweepcp.report.chart import Axis, Chart, Panel, Series
from sweepcp.report.labels import trial_label
from sweepcp.report.trial_series import (
    DOMAIN_AXIS,
    GENERAL_AXIS,
    front_steps,
    front_trials,
    score_columns,
)
from sweepcp.runs.front import hypervolume, score_matrix
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.util.json_values import json_differences

MIN_PAIRS = 4
"""A rank correlation of fewer pairs is not shown."""
TrialPair = tuple[Trial, Trial]


def comparison_chart(run: Run, other: Run) -> Chart:
    """Return both fronts and, if both tried the same recipes, their scores against each other."""
    names = _distinct_names(run, other)
    pairs = _matched_trials(run, other)
    panels = [_fronts_panel((run, other), names)]
    if pairs:
        panels.append(_matched_panel(pairs, names))
    return Chart(f"{names[0]} and {names[1]}", panels, _notes(run, other, names, pairs))


def _distinct_names(run: Run, other: Run) -> tuple[str, str]:
    """Return the names of the folders, or their paths where the names are equal."""
    if run.path.name != other.path.name:
        return run.path.name, other.path.name
    return str(run.path), str(other.path)


def _fronts_panel(runs: tuple[Run, Run], names: tuple[str, str]) -> Panel:
    series = []
    for run, name, style in zip(runs, names, ("front", "second"), strict=True):
        trials = front_trials(run)
        x, y = score_columns(trials)
        hover = [f"{name}\n{trial_label(run, trial, None)}" for trial in trials]
        series.append(front_steps(run, style))
        series.append(Series(f"front of {name}", x, y, colour=style, mark=style, hover=hover))
    series.append(Series("base of each", [0.0], [0.0], colour="base", mark="base"))
    return Panel(GENERAL_AXIS, DOMAIN_AXIS, series)


def _matched_panel(pairs: Sequence[TrialPair], names: tuple[str, str]) -> Panel:
    """Return the scores of one run against those of the other, with the line of equal scores."""
    series = []
    ends: list[float] = []
    for score, colour, mark in (("domain", "front", "front"), ("general", "chosen", "second")):
        x, y = _paired_scores(pairs, score)
        hover = [
            f"{first.id} and {second.id}\n{score} {value:+.2f} % and {other_value:+.2f} %"
            for (first, second), value, other_value in zip(pairs, x, y, strict=True)
        ]
        series.append(Series(f"{score} change", x, y, colour=colour, mark=mark, hover=hover))
        ends += x + y
    equal = [min(ends), max(ends)]
    series.insert(0, Series("equal", equal, equal, draw="line", colour="other", dashed=True))
    return Panel(Axis(f"{names[0]}, %"), Axis(f"{names[1]}, %"), series)


def _notes(run: Run, other: Run, names: tuple[str, str], pairs: Sequence[TrialPair]) -> list[str]:
    # One reference point for both: hypervolumes above different points cannot be compared.
    reference = run.experiment.choose.reference
    volume = hypervolume(score_matrix(front_trials(other)), reference)
    notes = [
        f"Hypervolume above the reference point of {names[0]}: {names[0]} "
        f"{run.front.hypervolume:.1f} %², {names[1]} {volume:.1f} %²."
    ]
    differences = json_differences(before=_compared_settings(run), after=_compared_settings(other))
    if differences:
        notes.append(f"The experiments differ in {'; '.join(differences)}.")
    else:
        notes.append("The experiments are the same.")
    if pairs:
        notes.append(f"{len(pairs)} recipes were tried in both{_rank_correlations(pairs)}.")
    else:
        notes.append("No recipe was tried in both, so only the fronts can be compared.")
    return notes


def _compared_settings(run: Run) -> dict[str, object]:
    """Return the experiment without the rule of choice, which changes no trial."""
    return run.experiment.model_dump(mode="json", exclude={"choose"})


def _matched_trials(run: Run, other: Run) -> list[TrialPair]:
    """Return pairs of done trials at the same point of the space."""
    # Reversed, so that of several trials at a point the first one stays in the dictionary.
    by_point = {_point_key(trial): trial for trial in reversed(other.done)}
    keys = [_point_key(trial) for trial in run.done]
    return [
        (trial, by_point[key]) for trial, key in zip(run.done, keys, strict=True) if key in by_point
    ]


def _point_key(trial: Trial) -> tuple[tuple[str, float | str], ...]:
    return tuple(sorted(trial.point.items()))


def _paired_scores(pairs: Sequence[TrialPair], score: str) -> tuple[list[float], list[float]]:
    value_of = attrgetter(score)
    return [value_of(first) for first, _ in pairs], [value_of(second) for _, second in pairs]


def _rank_correlations(pairs: Sequence[TrialPair]) -> str:
    """Return Spearman's rank correlation of both scores as text; empty for too few pairs."""
    if len(pairs) < MIN_PAIRS:
        return ""
    # Imported here because it takes half a second, which the page does without.
    import pandas as pd

    correlations = []
    for score in ("domain", "general"):
        ranks = [pd.Series(values).rank() for values in _paired_scores(pairs, score)]
        correlation = float(np.corrcoef(np.array(ranks))[0, 1])
        correlations.append(f"{score} {correlation:.2f}")
    return f"; Spearman's rank correlation: {', '.join(correlations)}"
