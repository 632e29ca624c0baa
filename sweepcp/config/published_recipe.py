"""The recipe file: a published recipe to promote without a search."""

from sweepcp.config.recipe import Mixture, TrainingMethod
from sweepcp.config.types import PositiveFloat


class PublishedRecipe(TrainingMethod):
    """A recipe from a publication."""

    published: str
    """The publication."""
    assumptions: tuple[str, ...] = ()
    """What the publication does not state."""
    lr_fraction: PositiveFloat
    """The max LR as a fraction of that of the base's own pretraining."""
    mixture: Mixture
    """Share of the tokens of each source."""
    seed: int = 0
    """Of the data order of a run with this recipe."""
