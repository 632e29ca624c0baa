"""The training loop, for a trial, for pretraining a small base, and for the full run alike."""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from sweepcp.config.recipe import Recipe
from sweepcp.config.types import Role
from sweepcp.data.stream import IGNORED, Batch, MixtureStream
from sweepcp.training.process_group import ProcessGroup


class TrainingEngine(Protocol):
    """What the loop needs of an engine."""

    ranks: ProcessGroup

    def step(self, batch: Batch, targets: int, lr: float) -> tuple[np.ndarray, float]:
        """Train on this rank's rows of a batch with `targets` target tokens on all ranks together.

        Returns the loss of each of the rows, summed in nats, and the gradient's norm over all ranks before clipping.
        """
        ...


class StepMetrics(NamedTuple):
    """One line of `metrics.jsonl`. All numbers are those of all ranks together."""

    step: int
    lr: float
    loss: float
    """Nats per target token of the step's batch, before the step."""
    grad_norm: float
    """Before clipping."""
    tokens: dict[str, int]
    """Source → tokens fed to the model so far."""
    losses: dict[Role, float]
    """Role → nats per target token; without the roles that the batch has nothing of."""


class Diverged(Exception):
    """The loss or the gradient is not finite, or otherwise out of bounds, at a step of training if one is named."""

    def __init__(self, why: str, step: int | None = None) -> None:
        self.step = step
        super().__init__(why)


def run_training(
    engine: TrainingEngine,
    recipe: Recipe,
    max_lr: float,
    stream: MixtureStream,
    done: int = 0,
    fed: dict[str, int] | None = None,
) -> Iterator[StepMetrics]:
    """Run the recipe's steps on an engine, a row a step; the caller may stop at any row, and go on after `done` steps.

    `max_lr` is the base's own pretraining max LR, of which the recipe takes its fraction; `fed` are the tokens of each
    source in the steps that are done. Raises `Diverged` as soon as the loss or the gradient norm is not finite.
    """
    portions, ranks = recipe.mixture.portions, engine.ranks
    tokens = np.array([(fed or {}).get(p.source, 0) for p in portions], dtype=np.int64)
    for step in range(done + 1, recipe.steps + 1):
        batch = stream.batch(step, ranks.rank, ranks.ranks)
        lr = recipe.lr(step, max_lr)
        in_rows = (batch.targets != IGNORED).sum(1)
        sequences, targets = ranks.total(
            _sum_by_source(batch, len(portions), np.ones(len(in_rows)), in_rows)
        )
        summed, norm = engine.step(batch, int(targets.sum()), lr)
        (losses,) = ranks.total(_sum_by_source(batch, len(portions), summed))
        loss = float(losses.sum() / targets.sum())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            why = f"step {step} of {recipe.steps}: loss {loss}, gradient norm {norm} at LR {lr:.3g}"
            raise Diverged(why, step)
        tokens += sequences.astype(np.int64) * recipe.seq_len
        by_role: dict[Role, float] = {}
        for role in dict.fromkeys(p.role for p in portions):
            own = [i for i, p in enumerate(portions) if p.role == role]
            if targets[own].sum():
                by_role[role] = float(losses[own].sum() / targets[own].sum())
        yield StepMetrics(
            step,
            lr,
            loss,
            norm,
            {p.source: int(n) for p, n in zip(portions, tokens, strict=True)},
            by_role,
        )


def _sum_by_source(batch: Batch, sources: int, *values: np.ndarray) -> np.ndarray:
    """Sums of values of the rows of a batch by their source, shape (values, sources)."""
    return np.stack(
        [np.bincount(batch.source, weights=value, minlength=sources) for value in values]
    )
