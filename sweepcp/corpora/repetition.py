"""How often each source is repeated, at the budget of a trial and at that of the full run."""

from dataclasses import dataclass

from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.source import Source
from sweepcp.config.space import Choices, Point, Space
from sweepcp.errors import InvalidInput, located

SHARE_AXES = ("general_share", "non_english_share")
"""Axes of a space that change the shares of sources."""


@dataclass(frozen=True)
class EpochCount:
    """How often a source is repeated.

    `first` is the recipe of the first trial, `most` the recipe of the space that gives the source
    its largest share.
    """

    source: Source
    tokens: float
    """Training tokens of the source."""
    first_share: float
    first_epochs: float
    most_epochs: float
    target_first_epochs: float | None
    """In a run with the target's budget; None if the experiment has no target."""
    target_most_epochs: float | None
    matched_fraction: float
    """Fraction of the source that trials may read, see the function of that name."""


def count_epochs(experiment: Experiment, tokens: dict[str, float]) -> list[EpochCount]:
    """Count the epochs of every source.

    Args:
        experiment: The experiment whose space, budget and target are taken.
        tokens: Training tokens of each source, by source name.

    Raises:
        InvalidInput: Repetition is to be matched and a source is too small for that.
    """
    first = first_recipe(experiment, tokens)
    # A source's share is monotonic along each share axis, so its largest value is at a corner.
    corners = [experiment.recipe_at(point, tokens) for point in corner_points(experiment.space)]
    target = experiment.target
    counts: list[EpochCount] = []
    for source in experiment.sources:
        name, size = source.name, tokens[source.name]
        fraction = matched_fraction(experiment, name, size)
        first_share = _share(first, name)
        most_share = max(_share(recipe, name) for recipe in corners)
        target_first = target_most = None
        if target is not None:
            target_size = target.source_tokens.get(name, size)
            target_first = first_share * target.tokens / target_size
            target_most = most_share * target.tokens / target_size
        counts.append(
            EpochCount(
                source=source,
                tokens=size,
                first_share=first_share,
                first_epochs=first_share * first.tokens / (size * fraction),
                most_epochs=most_share * first.tokens / (size * fraction),
                target_first_epochs=target_first,
                target_most_epochs=target_most,
                matched_fraction=fraction,
            )
        )
    return counts


def matched_fraction(experiment: Experiment, source: str, tokens: float) -> float:
    """Return the fraction of a source that makes a trial repeat it as often as the target's run.

    A run of T tokens on N tokens of a source has as many epochs of it as a run of t tokens on
    N · t / T tokens. The fraction is 1 unless the target asks to match repetition.

    Args:
        experiment: The experiment whose budget and target are taken.
        source: Name of the source.
        tokens: Training tokens of the source.

    Raises:
        InvalidInput: The source is too small, or what trials may read is less than a sequence.
    """
    target = experiment.target
    if target is None or not target.match_repetition:
        return 1.0
    needed = target.source_tokens.get(source, tokens) * experiment.budget.tokens / target.tokens
    with located("", f"sources.{source}"):
        if needed > tokens:
            raise InvalidInput(
                found=f"{tokens:,.0f} tokens",
                rule=f"at least {needed:,.0f} training tokens, to match the target's repetition",
                fix="add text to the source, lower budget.tokens, or remove match_repetition",
            )
        if needed <= experiment.training.seq_len:
            raise InvalidInput(
                found=f"{tokens:,.0f} tokens",
                rule=f"more than one sequence after matching the target's repetition, which leaves "
                f"{needed:,.0f} tokens",
                fix="raise budget.tokens",
            )
    return needed / tokens


def check_epochs(experiment: Experiment, tokens: dict[str, float]) -> None:
    """Raise `InvalidInput` if a trial or the target's run may exceed a source's epoch limit.

    Args:
        experiment: The experiment whose sources are checked.
        tokens: Training tokens of each source, by source name.
    """
    for count in count_epochs(experiment, tokens):
        source = count.source
        most = max(count.most_epochs, count.target_most_epochs or 0)
        if source.beyond_max_epochs == "refuse" and most > source.max_epochs:
            raise InvalidInput(
                key=f"sources.{source.name}.max_epochs",
                found=f"up to {most:.2f} epochs",
                rule=f"at most {source.max_epochs:g} epochs of the source in any run",
                fix="add text to the source, narrow the space, or set `beyond_max_epochs: warn`",
            )


def epoch_warnings(counts: list[EpochCount]) -> list[str]:
    """Return warnings about sources that are repeated too often, or only in the target's run."""
    warnings: list[str] = []
    beyond_in_target: list[str] = []
    repeated_in_target_only: list[str] = []
    for count in counts:
        name, limit = count.source.name, count.source.max_epochs
        target_epochs = count.target_most_epochs or 0
        if count.most_epochs > limit:
            warnings.append(_trial_warning(count))
        if target_epochs > limit:
            beyond_in_target.append(f"{name} {target_epochs:.1f} times")
        unmatched = count.matched_fraction == 1
        if unmatched and target_epochs > max(1, 2 * count.most_epochs):
            repeated_in_target_only.append(name)
    if beyond_in_target:
        names = ", ".join(beyond_in_target)
        warnings.append(f"the target's run may read {names}: more than max_epochs")
    if repeated_in_target_only:
        names = ", ".join(repeated_in_target_only)
        warnings.append(
            f"the target's run repeats {names} and trials do not, so trials cannot show the effect "
            "of repetition: set target.match_repetition"
        )
    return warnings


def first_recipe(experiment: Experiment, tokens: dict[str, float]) -> Recipe:
    """Return the recipe of the first anchor, or of a corner of the space if there is none."""
    anchors = experiment.space.anchors
    point = anchors[0] if anchors else corner_points(experiment.space)[0]
    return experiment.recipe_at(point, tokens)


def corner_points(space: Space) -> list[Point]:
    """Return all combinations of the end points of the share axes.

    Axes that do not change the shares of sources have their first value.
    """
    points: list[Point] = [{}]
    for name, axis in space.axes.items():
        ends = list(axis.choices) if isinstance(axis, Choices) else [axis.low, axis.high]
        values = ends if name in SHARE_AXES else ends[:1]
        points = [point | {name: value} for point in points for value in values]
    return points


def _trial_warning(count: EpochCount) -> str:
    source = count.source
    if source.beyond_max_epochs == "refuse":
        consequence = "the search is refused"
    else:
        consequence = "its result will not hold where the source is repeated less"
    return (
        f"a trial may read {source.name} {count.most_epochs:.1f} times, more than max_epochs "
        f"{source.max_epochs:g}: {consequence}"
    )


def _share(recipe: Recipe, source: str) -> float:
    """Return the share of a source in a recipe, 0 if it is not in the mixture."""
    for portion in recipe.mixture.portions:
        if portion.source == source:
            return portion.share
    return 0.0
