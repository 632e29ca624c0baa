"""What charts and page say of a trial and of a run, in words with units."""

from typing import NamedTuple

from sweepcp.config.recipe import Recipe
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import FrontCertainty
from sweepcp.scoring.scorecard import SplitScore


def format_signed(value: float, digits: int = 2) -> str:
    """A number with its sign: +9.80, −1.70."""
    return f"{value:+.{digits}f}".replace("-", "−")


def format_percent(share: float) -> str:
    """A share or probability as per cent, with one digit where it is needed."""
    return f"{100 * share:.3g} %"


def recipe_line(recipe: Recipe) -> str:
    """The two knobs."""
    return f"LR fraction {recipe.lr_fraction:.3g}, {format_percent(recipe.domain_share)} domain"


def scores_line(half: SplitScore, digits: int = 2) -> str:
    """Both scalars with their standard errors."""
    domain = f"{format_signed(half.domain, digits)} ± {half.domain_se:.{digits}f} % domain"
    return (
        f"{domain}, {format_signed(half.general, digits)} ± {half.general_se:.{digits}f} % general"
    )


def trial_label(run: Run, trial: Trial, sure: FrontCertainty | None) -> str:
    """What hovering a trial says: the recipe, the scores on both halves, how often it is on the front."""
    shares = ", ".join(
        f"{p.source} {format_percent(p.share)}" for p in trial.recipe.mixture.portions
    )
    own = {
        name: value
        for name, value in trial.point.items()
        if name not in ("lr_fraction", "general_share")
    }
    others = ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in own.items()
    )
    mark = " · chosen" if trial.id == run.front.choice.id else ""
    lines = [
        f"{trial.id} · {trial.status}{mark} · {trial.proposed_by}",
        recipe_line(trial.recipe),
        shares,
    ]
    lines += [others] if others else []
    if trial.scorecard:
        lines.append(f"{scores_line(trial.scorecard.select)} (chosen on)")
        lines.append(f"{scores_line(trial.scorecard.report)} (other half)")
    elif trial.reason:
        lines.append(trial.why[:120])
    if sure is not None and trial.id in sure.on_front:
        lines.append(
            f"on the front in {format_percent(sure.on_front[trial.id])} of resamples of the items"
        )
    return "\n".join(lines)


class TrialLabels(NamedTuple):
    """What charts show of a run beyond its records."""

    sure: FrontCertainty | None
    hover: dict[str, str]
    """Trial → what hovering it says."""


def trial_labels(run: Run, sure: FrontCertainty | None) -> TrialLabels:
    """Every trial's text, made once for all charts."""
    return TrialLabels(sure, {trial.id: trial_label(run, trial, sure) for trial in run.trials})


def choice_sentence(run: Run) -> str:
    """The choice in one sentence, with the numbers of the half that it was not chosen on."""
    trial = run.chosen
    if trial is not None and trial.scorecard is not None:
        return f"{recipe_line(trial.recipe)}: {scores_line(trial.scorecard.report, 1)}"
    near = run.chosen_or_nearest
    if near is None or near.scorecard is None:
        return "No trial is done: there is nothing to choose from."
    where = f"{near.id} ({recipe_line(near.recipe)}), has {scores_line(near.scorecard.select, 1)}"
    return f"No trial meets the rule. The one of least regression, {where} on the half that is chosen on."
