"""The `budget` section of an experiment: how many trials, and what they run on."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat, PositiveInt
from sweepcp.config.validation import ConfigModel

QUASI_RANDOM_TRIALS = 4
"""Quasi-random trials between the anchors and the trials that the sampler proposes."""
TYPICAL_UTILISATION = 0.3
"""Share of the devices' dense peak that training reaches, where it has not been measured."""
PUBLISHED_OVERRUN = 1.75
"""Published runs took up to so many times the hours at that utilisation: by its model card, Llama
3.1 took 1.7 times (8B) and 1.0 times (70B) the estimate. Hours and costs are estimated as an
interval, from the estimate to this many times it."""


class Budget(ConfigModel):
    """How many trials run, and on what. Prices and speeds serve the estimate of `plan` only."""

    trials: PositiveInt
    """Number of trials, including anchors and failed trials."""
    tokens: PositiveInt
    """Tokens of each trial, a multiple of `training.batch_tokens`."""
    concurrency: PositiveInt | None = None
    """Trials at a time; by default as many as the machine or cluster has room for."""
    cpus_per_trial: PositiveInt = 1
    """Threads of every process that trains or scores: the workers, the pretraining of a small base,
    `sweepcp score` and `sweepcp data check`."""
    gpus_per_trial: Annotated[int, Field(ge=0, le=1)] = 0
    """At most 1, because a trial trains in one process."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a trial starts again, from its first step, when its worker process or the node is
    lost: killed, as when memory runs out, or taken away. A trial that raises an error fails at
    once. It may change when a search resumes."""
    sustained_tflops: PositiveFloat | None = None
    """TFLOP/s that the devices of one trial reach in practice: their peak times the utilisation."""
    usd_per_hour: PositiveFloat | None = None
    """Price of the devices of one trial per hour, in USD."""

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        if self.usd_per_hour is not None and self.sustained_tflops is None:
            raise ValueError("a price needs a speed to become a cost; fix: add `sustained_tflops`")
        return self
