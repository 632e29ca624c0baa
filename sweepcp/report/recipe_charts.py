"""Charts of the recipes that a search has tried, and of how the scores depend on them."""

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from sweepcp.config.space import Choices, Range
from sweepcp.report.chart import Axis, Chart, Panel, Series
from sweepcp.report.labels import TrialLabels
from sweepcp.report.trend import Trend
from sweepcp.report.trial_series import (
    DOMAIN_AXIS,
    DOMAIN_SHARE_AXIS,
    GENERAL_AXIS,
    LR_FRACTION_AXIS,
    domain_share_of,
    group_by_outcome,
    lr_fraction_of,
    point_series,
)
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

SCORES = ("domain", "general")


class ParallelAxis(NamedTuple):
    """One vertical axis of the parallel chart."""

    label: str
    height_of: Callable[[Trial], float]
    """Trial → its height in 0..1."""


def recipe_chart(run: Run, labels: TrialLabels) -> Chart:
    """Return all finished trials by LR fraction and domain share, also those without a score."""
    series = point_series(run, run.trials, labels, x=lr_fraction_of, y=domain_share_of)
    notes = []
    if len(run.experiment.space.axes) > 2:
        notes.append("Values of the other axes are in the hover text of each point.")
    panel = Panel(LR_FRACTION_AXIS, DOMAIN_SHARE_AXIS, series)
    return Chart("Recipes that were tried", [panel], notes)


def tradeoff_chart(run: Run, trend: Trend | None, labels: TrialLabels) -> Chart:
    """Return both scores against LR fraction and domain share.

    The fitted trend is drawn through the chosen recipe, or through the nearest to the rule.
    """
    panels = []
    for score, score_axis in zip(SCORES, (DOMAIN_AXIS, GENERAL_AXIS), strict=True):
        for name, axis, position_of in (
            ("lr_fraction", LR_FRACTION_AXIS, lr_fraction_of),
            ("general_share", DOMAIN_SHARE_AXIS, domain_share_of),
        ):
            series = _trend_line(run, trend, axis=name, score=score)
            series += point_series(run, run.done, labels, x=position_of, y=attrgetter(score))
            panels.append(Panel(axis, score_axis, series))
    note = "No trend is shown: it needs more done trials."
    if trend is not None:
        domain, general = trend.predictive
        note = (
            "The trend is a quadratic function of all searched ranges, fitted to "
            f"{trend.trials} trials. Its leave-one-out R² is {domain:.2f} (domain) and "
            f"{general:.2f} (general)."
        )
    return Chart("Scores against LR fraction and domain share", panels, [note])


def parallel_chart(run: Run, labels: TrialLabels) -> Chart:
    """Return one line per done trial through all searched axes and both scores."""
    done = run.done
    axes = [_searched_axis(name, axis) for name, axis in run.experiment.space.axes.items()]
    if done:
        axes += [_score_axis(score, done) for score in SCORES]
    series = []
    for group in group_by_outcome(run, done, labels.certainty):
        x: list[float] = []
        y: list[float] = []
        hover: list[str] = []
        for trial in group.trials:
            # The NaN at the end keeps the line from running on to the next trial.
            x += [*range(len(axes)), math.nan]
            y += [*(axis.height_of(trial) for axis in axes), math.nan]
            hover += [labels.hover[trial.id]] * len(axes) + [""]
        series.append(
            Series(
                group.name,
                x,
                y,
                draw="line",
                colour=group.colour,
                hover=hover,
                faint=group.colour == "other",
            )
        )
    ticks = [(float(index), axis.label) for index, axis in enumerate(axes)]
    height = Axis("position in the range, 0 to 1")
    return Chart("Recipes and their scores", [Panel(Axis("", ticks=ticks), height, series)])


def importance_chart(run: Run, importance: dict[str, dict[str, float]]) -> Chart:
    """Return the importance of each axis for being among the best trials, by PED-ANOVA.

    Args:
        run: The run whose axes are shown.
        importance: `front`, `domain` and `general`, each with axis → share of 1, as
            `axis_importance` returns it; empty if there are too few trials.
    """
    names = list(run.experiment.space.axes)
    ticks = [(float(index), name) for index, name in enumerate(names)]
    series = []
    notes = ["Not available: fewer than ten trials are done."]
    if importance:
        for key, label, colour in (
            ("front", "closeness to the front", "front"),
            ("domain", "domain score", "chosen"),
            ("general", "general score", "second"),
        ):
            heights = [importance[key].get(name, 0.0) for name in names]
            places = list(range(len(names)))
            series.append(Series(label, places, heights, draw="bars", colour=colour))
        notes = [
            "PED-ANOVA: which axes distinguish the best tenth of the trials (at least five) from "
            "all trials. It does not say by how much the scores change."
        ]
    panel = Panel(Axis("", ticks=ticks), Axis("importance, sums to 1"), series)
    return Chart("Importance of the searched axes", [panel], notes)


def _trend_line(run: Run, trend: Trend | None, *, axis: str, score: str) -> list[Series]:
    """Return the trend of a score along an axis, if there is one."""
    through = run.chosen_or_nearest
    if trend is None or through is None or axis not in trend.axes:
        return []
    values, curve = trend.along(axis, through.point)
    if axis == "general_share":
        values = [100 * (1 - value) for value in values]
    name = f"trend, other axes as in {through.id}"
    scores = curve[:, SCORES.index(score)].tolist()
    return [Series(name, values, scores, draw="line", colour="second")]


def _searched_axis(name: str, axis: Range | Choices) -> ParallelAxis:
    if isinstance(axis, Range):
        label = f"{name}\n{axis.low:g} to {axis.high:g}, {axis.scale}"
        return ParallelAxis(label, lambda trial: axis.to_unit(float(trial.point[name])))
    label = f"{name}\n{', '.join(str(choice) for choice in axis.choices)}"
    last = max(1, len(axis.choices) - 1)
    return ParallelAxis(label, lambda trial: axis.choices.index(trial.point[name]) / last)


def _score_axis(score: str, done: Sequence[Trial]) -> ParallelAxis:
    value_of = attrgetter(score)
    values = [value_of(trial) for trial in done]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    label = f"{score}, %\n{low:.1f} to {high:.1f}"
    return ParallelAxis(label, lambda trial: (value_of(trial) - low) / span)
