"""How often a run reads each of its sources: at the proxy's budget, and at that of the run it stands for."""

from dataclasses import dataclass

from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.source import Source
from sweepcp.config.space import Choices, Point, Space
from sweepcp.errors import InvalidInput


@dataclass(frozen=True)
class EpochCount:
    """How often a source is read. `most` is at the point of the space that gives it the largest share."""

    source: Source
    tokens: float
    """Training tokens of the source here."""
    first_share: float
    first_epochs: float
    """In the first trial."""
    most_epochs: float
    target_first_epochs: float | None
    """In a run of the target's budget with the first trial's shares; None where no target is named."""
    target_most_epochs: float | None
    part: float
    """Share of the source that trials may see, so that they repeat it as the target's run would."""


def count_epochs(experiment: Experiment, tokens: dict[str, float]) -> list[EpochCount]:
    """Epochs of every source, from the training tokens of each.

    Raises `BadInput` where repetition is to be matched and a source is too small for that.
    """
    corners = [experiment.recipe_at(point, tokens) for point in corner_points(experiment.space)]
    first = first_recipe(experiment, tokens)
    target = experiment.target
    found = []
    for source in experiment.sources:
        name, size = source.name, tokens[source.name]
        part = matched_fraction(experiment, name, size)
        most = max(_share(recipe, name) for recipe in corners)
        whole = target.source_tokens.get(name, size) if target else size
        found.append(
            EpochCount(
                source=source,
                tokens=size,
                first_share=_share(first, name),
                first_epochs=_share(first, name) * first.tokens / (size * part),
                most_epochs=most * first.tokens / (size * part),
                target_first_epochs=_share(first, name) * target.tokens / whole if target else None,
                target_most_epochs=most * target.tokens / whole if target else None,
                part=part,
            )
        )
    return found


def matched_fraction(experiment: Experiment, name: str, tokens: float) -> float:
    """The share of a source that makes a trial read it as often as the target's run would; 1 unless that is asked for.

    A run of T tokens that reads N tokens of a source repeats as one of t tokens does that reads N · t / T.
    """
    target = experiment.target
    if target is None or not target.match_repetition:
        return 1.0
    needed = target.source_tokens.get(name, tokens) * experiment.budget.tokens / target.tokens
    key = f"sources.{name}"
    if needed > tokens:
        rule = f"matching the target's repetition takes {needed:,.0f} training tokens"
        fix = "give the source more text, lower budget.tokens, or leave match_repetition out"
        raise InvalidInput(
            file=experiment.name, key=key, found=f"{tokens:,.0f} tokens", rule=rule, fix=fix
        )
    if needed <= experiment.training.seq_len:
        rule = f"matching the target's repetition leaves {needed:,.0f} tokens, less than a sequence"
        raise InvalidInput(
            file=experiment.name,
            key=key,
            found=f"{tokens:,.0f} tokens",
            rule=rule,
            fix="raise budget.tokens",
        )
    return needed / tokens


def check_epochs(experiment: Experiment, tokens: dict[str, float]) -> None:
    """Raise `BadInput` for a source that a trial, or the target's run, may read more often than it allows."""
    for reading in count_epochs(experiment, tokens):
        source = reading.source
        most = max(reading.most_epochs, reading.target_most_epochs or 0)
        if source.beyond_max_epochs == "refuse" and most > source.max_epochs:
            key = f"sources.{source.name}.max_epochs"
            rule = f"no run reads the source more than {source.max_epochs:g} times"
            fix = "give it more text, narrow the space, or set `beyond_max_epochs: warn`"
            raise InvalidInput(
                file=experiment.name, key=key, found=f"up to {most:.2f} epochs", rule=rule, fix=fix
            )


def epoch_warnings(found: list[EpochCount]) -> list[str]:
    """What to say of sources that are read too often, or in a trial otherwise than in the target's run."""
    lines: list[str] = []
    often: list[str] = []
    unlike: list[str] = []
    for reading in found:
        name, cap, target = (
            reading.source.name,
            reading.source.max_epochs,
            reading.target_most_epochs or 0,
        )
        does = (
            "is refused"
            if reading.source.beyond_max_epochs == "refuse"
            else "will not hold where it is read less"
        )
        if reading.most_epochs > cap:
            lines.append(
                f"a trial may read {name} {reading.most_epochs:.1f} times, more than max_epochs {cap:g}: "
                f"what it then learns {does}"
            )
        if target > cap:
            often.append(f"{name} {target:.1f} times")
        if reading.part == 1 and target > max(1, 2 * reading.most_epochs):
            unlike.append(name)
    if often:
        lines.append(f"the target's run may read {', '.join(often)}: more than max_epochs")
    if unlike:
        lines.append(
            f"the target's run repeats {', '.join(unlike)}, and trials do not, so they will not show what that does: "
            "set target.match_repetition"
        )
    return lines


def first_recipe(experiment: Experiment, tokens: dict[str, float]) -> Recipe:
    """The recipe of trial one, or of a corner of the space where there is no anchor."""
    anchors = experiment.space.anchors
    return experiment.recipe_at(anchors[0] if anchors else corner_points(experiment.space)[0], tokens)


def corner_points(space: Space) -> list[Point]:
    """The points at the ends of the axes that shift shares; other axes stay at their first value."""
    points: list[Point] = [{}]
    for name, axis in space.axes.items():
        ends = list(axis.choices) if isinstance(axis, Choices) else [axis.low, axis.high]
        moved = ends if name in ("general_share", "non_english_share") else ends[:1]
        points = [point | {name: value} for point in points for value in moved]
    return points


def _share(recipe: Recipe, source: str) -> float:
    return next((p.share for p in recipe.mixture.portions if p.source == source), 0.0)
