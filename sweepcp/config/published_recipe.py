"""TODO config.published_recipe."""

from sweepcp.config.recipe import Mixture, TrainingMethod
from sweepcp.config.types import PositiveFloat


class PublishedRecipe(TrainingMethod):
    """A recipe that was published and not searched here."""

    published: str
    """Where."""
    assumptions: tuple[str, ...] = ()
    """What the publication does not say."""
    lr_fraction: PositiveFloat
    mixture: Mixture
    seed: int = 0
