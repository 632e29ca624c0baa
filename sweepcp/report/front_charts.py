"""Charts of the front and of the choice. Scores are relative changes against the base in %."""

from collections.abc import Callable, Sequence

from sweepcp.config.choice import ChoiceRule
from sweepcp.report.chart import Axis, Chart, Panel, Series
from sweepcp.report.labels import TrialLabels, choice_sentence, format_percent, trial_label
from sweepcp.report.trial_series import (
    DOMAIN_AXIS,
    DOMAIN_SHARE_AXIS,
    GENERAL_AXIS,
    LR_FRACTION_AXIS,
    POSSIBLE_SHARE,
    bound_line,
    domain_of,
    domain_share_of,
    front_steps,
    front_trials,
    general_of,
    lr_fraction_of,
    point_series,
)
from sweepcp.runs.front import choose_point, score_matrix
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import RESAMPLES


def front_chart(run: Run, labels: TrialLabels) -> Chart:
    """Return all done trials by their two scores, the base, and the choice on both halves."""
    done = run.done
    series = [front_steps(run, "front")]
    if run.rule.max_regression is not None and done:
        series.append(bound_line(-run.rule.max_regression, [0.0, *map(domain_of, done)]))
    series += point_series(run, done, labels, x=general_of, y=domain_of, errors=True)
    if run.base is not None:
        hover = [f"the base model, {run.base.model}\nscored before any training"]
        series.append(Series("base", [0.0], [0.0], colour="base", mark="base", hover=hover))
    if run.chosen is not None:
        series += _choice_on_reporting_half(run.chosen, labels)
    return Chart("Front", [Panel(GENERAL_AXIS, DOMAIN_AXIS, series)], _front_notes(run, labels))


def tolerance_chart(run: Run) -> Chart:
    """Return the chosen recipe as a function of the general regression that is accepted."""
    front = front_trials(run)
    scores = score_matrix(front)
    # The choice changes only where the bound reaches the regression of a trial of the front.
    bounds = sorted({max(0.0, -general_of(trial)) for trial in front})
    chosen = [choose_point(scores, ChoiceRule(max_regression=bound)) for bound in bounds]
    trials = [front[index] for index in chosen if index is not None]
    hover = [
        f"from a bound of {bound:.2f} %\n{trial_label(run, trial, None)}"
        for bound, trial in zip(bounds, trials, strict=True)
    ]
    quantities: tuple[tuple[Axis, Callable[[Trial], float]], ...] = (
        (Axis("domain gain, %"), domain_of),
        (LR_FRACTION_AXIS, lr_fraction_of),
        (DOMAIN_SHARE_AXIS, domain_share_of),
    )
    panels = []
    for axis, value_of in quantities:
        series: list[Series] = []
        if trials:
            values = [value_of(trial) for trial in trials]
            series += _tolerance_steps(bounds=bounds, values=values, hover=hover)
            if run.rule.max_regression is not None:
                series.append(bound_line(run.rule.max_regression, values))
        panels.append(Panel(Axis("accepted general regression, %"), axis, series))
    return Chart(
        "The choice by accepted general regression", panels, ["Scores on the selection half."]
    )


def _tolerance_steps(
    *, bounds: Sequence[float], values: Sequence[float], hover: Sequence[str]
) -> list[Series]:
    """Return values of the chosen trial from each bound on, as a line and as points."""
    end = bounds[-1] * 1.1 + 0.1
    return [
        Series("the choice", [*bounds, end], [*values, values[-1]], draw="steps", colour="front"),
        Series("changes of the choice", bounds, values, colour="front", mark="front", hover=hover),
    ]


def _choice_on_reporting_half(trial: Trial, labels: TrialLabels) -> list[Series]:
    """Return the chosen trial on the reporting half, joined to its point on the selection half."""
    if trial.scorecard is None:
        return []
    select, report = trial.scorecard.select, trial.scorecard.report
    path = Series(
        "",
        [select.general, report.general],
        [select.domain, report.domain],
        draw="line",
        colour="chosen",
    )
    point = Series(
        "chosen, reporting half",
        [report.general],
        [report.domain],
        colour="chosen",
        mark="second",
        hover=[f"{labels.hover[trial.id]}\nshown here: the reporting half"],
        x_error=[report.general_se],
        y_error=[report.domain_se],
    )
    return [path, point]


def _front_notes(run: Run, labels: TrialLabels) -> list[str]:
    notes = [
        f"{choice_sentence(run).rstrip('.')}.",
        "Scores are relative changes against the base; higher is better.",
        "Error bars are standard errors of evaluation; every trial was trained with one seed.",
    ]
    if labels.certainty is not None:
        notes.append(
            "“Possibly on the front”: on the front in at least "
            f"{format_percent(POSSIBLE_SHARE)} of {RESAMPLES} resamples of the documents "
            "(evaluation noise only)."
        )
    unscored = len(run.trials) - len(run.done)
    if unscored:
        notes.append(
            f"Not shown, because they have no score: {unscored} of {len(run.trials)} trials."
        )
    return notes
