"""The `budget` section of an experiment: how many trials, and what they run on."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

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


RESOURCE_UNITS = 10_000
"""Ray counts resources in units of 1 / so many."""


def _check_gpu_share(value: Any) -> Any:
    # One rule for the whole value, rather than one for each type that it may have.
    if value == "auto":
        return value
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(
            "auto, or a number from 0 to 1, because a trial trains in one process; fix: write auto,"
            " 0 for CPUs, 1 for a GPU per trial, or a fraction such as 0.25 for four trials per GPU"
        )
    units = value * RESOURCE_UNITS
    if abs(units - round(units)) > 1e-6:
        steps, nearest = 1 / RESOURCE_UNITS, max(1, int(units)) / RESOURCE_UNITS
        raise ValueError(f"a multiple of {steps:g}, the unit of Ray; fix: write {nearest:g}")
    return value


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
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=1)], BeforeValidator(_check_gpu_share)
    ] = "auto"
    """The share of a GPU that a trial gets: 1, a fraction of a GPU that several trials share, or 0
    to train on CPUs. At most 1, because a trial trains in one process. `auto`: 1 if a GPU is
    visible, else 0. It may change when a search resumes, unless that changes the device."""
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
