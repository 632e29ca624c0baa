"""The training loop, for a trial and for pretraining a small base alike."""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from sweepcp.data.stream import Batch, Stream
from sweepcp.recipe import Recipe


class Steps(Protocol):
    """What the loop needs of an engine."""

    def step(self, batch: Batch, lr: float) -> tuple[float, float]: ...


class Row(NamedTuple):
    """One line of `metrics.jsonl`."""

    step: int
    lr: float
    loss: float
    """Nats per target token of the step's batch, before the step."""
    grad_norm: float
    """Before clipping."""
    tokens: dict[str, int]
    """Source → tokens fed to the model so far."""


class Diverged(Exception):
    """The loss or the gradient is not finite."""


def train(engine: Steps, recipe: Recipe, max_lr: float, stream: Stream) -> Iterator[Row]:
    """Run the recipe's steps on an engine, a row a step; the caller may stop at any row.

    `max_lr` is the base's own pretraining max LR, of which the recipe takes its fraction. Raises `Diverged` as soon
    as the loss or the gradient norm is not finite.
    """
    names = [p.source for p in recipe.mixture.portions]
    fed = np.zeros(len(names), dtype=np.int64)
    for step in range(1, recipe.steps + 1):
        batch = stream.batch(step)
        lr = recipe.lr(step, max_lr)
        loss, norm = engine.step(batch, lr)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(f"step {step} of {recipe.steps}: loss {loss}, gradient norm {norm} at LR {lr:.3g}")
        np.add.at(fed, batch.source, batch.input_ids.shape[1])
        yield Row(step, lr, loss, norm, dict(zip(names, fed.tolist(), strict=True)))
