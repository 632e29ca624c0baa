"""Short texts about trials and about the choice, with units, for charts and page."""

from collections.abc import Iterable
from typing import NamedTuple

from sweepcp.config.recipe import Recipe
from sweepcp.config.space import Value
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import FrontCertainty
from sweepcp.scoring.scorecard import SplitScore

MAIN_AXES = ("lr_fraction", "general_share")
"""Axes of the space that `format_recipe` and the main charts show."""
REASON_CHARACTERS = 120
"""Longer reasons are cut in hover texts."""


class TrialLabels(NamedTuple):
    """What charts show of trials beyond their records."""

    certainty: FrontCertainty | None
    hover: dict[str, str]
    """Trial → its hover text."""

    def hover_of(self, trials: Iterable[Trial]) -> list[str]:
        """Return the hover texts of trials."""
        return [self.hover[trial.id] for trial in trials]


def trial_labels(run: Run, certainty: FrontCertainty | None) -> TrialLabels:
    """Return hover texts of all trials, computed once and shared by the charts."""
    hover = {trial.id: trial_label(run, trial, certainty) for trial in run.trials}
    return TrialLabels(certainty, hover)


def trial_label(run: Run, trial: Trial, certainty: FrontCertainty | None) -> str:
    """Return the hover text of a trial: recipe, scores of both halves, certainty; one per line."""
    mark = " · chosen" if trial.id == run.front.choice.id else ""
    shares = [
        f"{share.source} {format_percent(share.share)}" for share in trial.recipe.mixture.portions
    ]
    lines = [
        f"{trial.id} · {trial.status}{mark} · {trial.proposed_by}",
        format_recipe(trial.recipe),
        ", ".join(shares),
    ]
    other_axes = {name: value for name, value in trial.point.items() if name not in MAIN_AXES}
    if other_axes:
        lines.append(
            ", ".join(f"{name} {_format_value(value)}" for name, value in other_axes.items())
        )
    if trial.scorecard:
        lines.append(f"selection half: {format_scores(trial.scorecard.select)}")
        lines.append(f"reporting half: {format_scores(trial.scorecard.report)}")
    elif trial.reason:
        lines.append(trial.short_reason[:REASON_CHARACTERS])
    if certainty is not None and trial.id in certainty.on_front:
        share = format_percent(certainty.on_front[trial.id])
        lines.append(f"on the front in {share} of the resamples of the documents")
    return "\n".join(lines)


def choice_sentence(run: Run) -> str:
    """Return the choice in one sentence, with its scores on the reporting half."""
    trial = run.chosen
    if trial is not None and trial.scorecard is not None:
        scores = format_scores(trial.scorecard.report, digits=1)
        return f"{format_recipe(trial.recipe)}: {scores}"
    nearest = run.chosen_or_nearest
    if nearest is None or nearest.scorecard is None:
        return "No trial is done, so there is nothing to choose from."
    scores = format_scores(nearest.scorecard.select, digits=1)
    return (
        "No trial meets the rule. The trial of least regression, "
        f"{nearest.id} ({format_recipe(nearest.recipe)}), has {scores} on the selection half."
    )


def format_recipe(recipe: Recipe) -> str:
    """Return the LR fraction and the domain share of a recipe."""
    return f"LR fraction {recipe.lr_fraction:.3g}, {format_percent(recipe.domain_share)} domain"


def format_scores(scores: SplitScore, *, digits: int = 2) -> str:
    """Return both scalars in %, with their standard errors."""
    domain = f"{format_signed(scores.domain, digits=digits)} ± {scores.domain_se:.{digits}f}"
    general = f"{format_signed(scores.general, digits=digits)} ± {scores.general_se:.{digits}f}"
    return f"{domain} % domain, {general} % general"


def format_signed(value: float, *, digits: int = 2) -> str:
    """Return a number with its sign, as in +9.80 and −1.70."""
    return f"{value:+.{digits}f}".replace("-", "−")


def format_percent(share: float) -> str:
    """Return a share or probability in per cent, with three significant digits."""
    return f"{100 * share:.3g} %"


def _format_value(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
