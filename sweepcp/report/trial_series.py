"""Parts that several charts share: axes, the points of trials by outcome, and the front's edge."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sweepcp.report.chart import Axis, Series
from sweepcp.report.labels import TrialLabels
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.runs.uncertainty import FrontCertainty

DOMAIN_AXIS = Axis("domain change, %")
GENERAL_AXIS = Axis("general change, %")
LR_FRACTION_AXIS = Axis("LR fraction", log=True)
DOMAIN_SHARE_AXIS = Axis("domain share, % of tokens")
POSSIBLE_SHARE = 0.05
"""Dominated trials on the front in at least this share of resamples are possibly on the front."""
OUTCOME_MARKS = {"chosen": "chosen", "bad": "bad", "second": "second"}
"""Colour of a group of trials → its mark, where that is not the usual one."""


class OutcomeGroup(NamedTuple):
    """Trials of one outcome."""

    name: str
    colour: str
    trials: list[Trial]

    @property
    def on_front(self) -> bool:
        """Whether the trials are on the front."""
        return self.colour in ("front", "chosen")


def domain_of(trial: Trial) -> float:
    """Return the domain score of a done trial on the selection half, in %."""
    assert trial.domain is not None
    return trial.domain


def general_of(trial: Trial) -> float:
    """Return the general score of a done trial on the selection half, in %."""
    assert trial.general is not None
    return trial.general


def lr_fraction_of(trial: Trial) -> float:
    """Return the LR fraction of a trial's recipe."""
    return trial.recipe.lr_fraction


def domain_share_of(trial: Trial) -> float:
    """Return the domain share of a trial's recipe in % of tokens."""
    return 100 * trial.recipe.domain_share


def score_columns(trials: Iterable[Trial]) -> tuple[list[float], list[float]]:
    """Return the general scores and the domain scores of done trials: x and y of the front."""
    shown = list(trials)
    return [general_of(trial) for trial in shown], [domain_of(trial) for trial in shown]


def front_trials(run: Run) -> list[Trial]:
    """Return the trials of the front, in ascending order of domain gain."""
    return [run.by_id[trial_id] for trial_id in run.front.ids]


def front_steps(run: Run, colour: str) -> Series:
    """Return the edge of the area that the front dominates."""
    x, y = score_columns(front_trials(run))
    return Series("", x, y, draw="steps", colour=colour, faint=True)


def bound_line(position: float, heights: Sequence[float]) -> Series:
    """Return the bound of the rule as a vertical line as high as what is drawn."""
    ends = [min(heights), max(heights)]
    return Series("bound of the rule", [position] * 2, ends, draw="line", colour="bad", dashed=True)


def group_by_outcome(
    run: Run, trials: Sequence[Trial], certainty: FrontCertainty | None
) -> list[OutcomeGroup]:
    """Group trials by their outcome. Each trial is in one group; empty groups are left out."""
    front, chosen = set(run.front.ids), run.front.choice.id
    dominated = [trial for trial in trials if trial.status == "done" and trial.id not in front]
    shares = certainty.on_front if certainty else {}
    possible = {trial_id for trial_id, share in shares.items() if share >= POSSIBLE_SHARE}

    def with_status(status: str) -> list[Trial]:
        return [trial for trial in trials if trial.status == status]

    groups = [
        OutcomeGroup("dominated", "other", [t for t in dominated if t.id not in possible]),
        OutcomeGroup(
            "possibly on the front", "possible", [t for t in dominated if t.id in possible]
        ),
        OutcomeGroup(
            "on the front", "front", [t for t in trials if t.id in front and t.id != chosen]
        ),
        OutcomeGroup("stopped", "second", with_status("stopped")),
        OutcomeGroup("diverged", "bad", with_status("diverged")),
        OutcomeGroup("failed", "bad", with_status("failed")),
        OutcomeGroup("chosen", "chosen", [t for t in trials if t.id == chosen]),
    ]
    return [group for group in groups if group.trials]


def point_series(
    run: Run,
    trials: Sequence[Trial],
    labels: TrialLabels,
    *,
    x: Callable[[Trial], float],
    y: Callable[[Trial], float],
    errors: bool = False,
) -> list[Series]:
    """Return the points of trials, in one series per outcome and kind of proposer.

    Args:
        run: The run of the trials.
        trials: Those to draw.
        labels: Hover texts, and the certainty of the front.
        x: The horizontal position of a trial.
        y: The vertical position of a trial.
        errors: Draw the standard errors of the scores of trials on the front.
    """
    series = []
    for group in group_by_outcome(run, trials, labels.certainty):
        anchors = [trial for trial in group.trials if trial.proposed_by == "anchor"]
        others = [trial for trial in group.trials if trial.proposed_by != "anchor"]
        for members, is_anchor in ((others, False), (anchors, True)):
            if not members:
                continue
            name = f"{group.name}, anchor" if is_anchor else group.name
            x_error, y_error = _errors_of(members) if errors and group.on_front else ([], [])
            series.append(
                Series(
                    name,
                    x=[x(trial) for trial in members],
                    y=[y(trial) for trial in members],
                    colour=group.colour,
                    mark=_mark_of(group, is_anchor=is_anchor),
                    hover=labels.hover_of(members),
                    x_error=x_error,
                    y_error=y_error,
                    faint=group.name == "dominated",
                )
            )
    return series


def _errors_of(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Return the standard errors of the general scores and of the domain scores."""
    scores = [trial.scorecard.select for trial in trials if trial.scorecard]
    return [score.general_se for score in scores], [score.domain_se for score in scores]


def _mark_of(group: OutcomeGroup, *, is_anchor: bool) -> str:
    if group.name == "failed":
        return "second"
    return OUTCOME_MARKS.get(group.colour, "anchor" if is_anchor else "other")
