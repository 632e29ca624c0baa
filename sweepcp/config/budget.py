"""The `budget` section of an experiment: how many trials, and what they run on."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat, PositiveInt
from sweepcp.config.validation import ConfigModel

QUASI_RANDOM_TRIALS = 4
"""Quasi-random trials between the anchors and the trials that the sampler proposes."""


class Budget(ConfigModel):
    """How many trials run, and on what. Prices and speeds serve the estimate of `plan` only."""

    trials: PositiveInt
    tokens: PositiveInt
    """Tokens of each trial, a multiple of `training.batch_tokens`."""
    concurrency: PositiveInt | None = None
    """Trials at a time; by default as many as the machine or cluster has room for."""
    cpus_per_trial: PositiveInt = 1
    gpus_per_trial: Annotated[int, Field(ge=0, le=1)] = 0
    """At most 1, because a trial trains in one process."""
    sustained_tflops: PositiveFloat | None = None
    """TFLOP/s that the devices of one trial reach in practice: their peak times the utilisation."""
    usd_per_hour: PositiveFloat | None = None
    """Price of the devices of one trial."""

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        if self.usd_per_hour is not None and self.sustained_tflops is None:
            raise ValueError("a price needs a speed to become a cost; fix: add `sustained_tflops`")
        return self
