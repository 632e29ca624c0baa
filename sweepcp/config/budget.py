"""Optuna proposes, Ray Tune runs, the run folder remembers."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat
from sweepcp.config.validation import ConfigModel

QUASI_RANDOM_TRIALS = 4
"""Quasi-random trials after the anchors, before the model proposes."""


class Budget(ConfigModel):
    """How much is tried, and on what. Prices and speeds serve the estimate of `plan` only."""

    trials: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    """Tokens of each trial, a multiple of `training.batch_tokens`."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; by default as many as the machine or cluster has room for."""
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    gpus_per_trial: Annotated[int, Field(ge=0, le=1)] = 0
    """A trial trains in one process, so on one GPU at most."""
    sustained_tflops: PositiveFloat | None = None
    """TFLOP/s that one trial's devices really reach: their peak times the utilisation."""
    usd_per_hour: PositiveFloat | None = None
    """Price of one trial's devices."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.usd_per_hour is not None and self.sustained_tflops is None:
            raise ValueError("a price needs a speed to become a cost; fix: add `sustained_tflops`")
        return self
