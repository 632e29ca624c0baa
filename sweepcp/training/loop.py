"""The training loop that trials, the pretraining of a small base and the full run share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from sweepcp.config.recipe import Recipe, SourceShare
from sweepcp.config.types import Role
from sweepcp.data.stream import IGNORED, Batch, MixtureStream
from sweepcp.errors import Diverged

if TYPE_CHECKING:  # imports torch, which the driver of a search need not wait for
    from sweepcp.training.process_group import ProcessGroup


class TrainingEngine(Protocol):
    """What the loop needs of an engine."""

    group: "ProcessGroup"
    """The processes that share each batch."""

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        """Take one optimizer step on this rank's rows of a batch.

        Args:
            batch: This rank's rows.
            target_tokens: Targets that are not ignored in the rows of all ranks: the loss is
                averaged over them.
            lr: The learning rate of this step.

        Returns:
            The loss of each of the rows, summed in nats, shape (rows,), and the norm of the whole
            gradient before clipping.
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
    """Role → nats per target token, without roles that have no target in the batch."""


def run_training(
    engine: TrainingEngine,
    recipe: Recipe,
    stream: MixtureStream,
    *,
    max_lr: float,
    steps_done: int = 0,
    tokens_fed: Mapping[str, int] | None = None,
) -> Iterator[StepMetrics]:
    """Run the remaining steps of a recipe and yield the metrics of each.

    The caller may stop after any step, and resume with the engine's state of that step.

    Args:
        engine: Takes the steps.
        recipe: Schedule, mixture and number of steps.
        stream: The batches.
        max_lr: The max LR of the base's own pretraining, of which the recipe takes its fraction.
        steps_done: Steps that were taken before.
        tokens_fed: Source → tokens fed to the model in those steps.

    Raises:
        Diverged: The loss or the gradient norm of a step is not finite.
    """
    portions, group = recipe.mixture.portions, engine.group
    before = tokens_fed or {}
    tokens = np.array([before.get(p.source, 0) for p in portions], dtype=np.int64)
    for step in range(steps_done + 1, recipe.steps + 1):
        batch = stream.batch(step, group.rank, group.world_size)
        lr = recipe.lr(step, max_lr=max_lr)
        # A rank may hold more targets than another, so counts are summed before the step: the
        # loss is a mean over the targets of all ranks, not a mean of the ranks' means.
        row_targets = (batch.targets != IGNORED).sum(1)
        row_counts = np.ones(len(row_targets))
        sequences, targets = group.all_reduce_sum(
            _sum_by_source(batch, len(portions), row_counts, row_targets)
        )
        row_losses, grad_norm = engine.step(batch, target_tokens=int(targets.sum()), lr=lr)
        (losses,) = group.all_reduce_sum(_sum_by_source(batch, len(portions), row_losses))
        loss = float(losses.sum() / targets.sum())
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(
                f"step {step} of {recipe.steps}: loss {loss}, gradient norm {grad_norm} "
                f"at LR {lr:.3g}",
                step,
            )
        tokens += sequences.astype(np.int64) * recipe.seq_len
        yield StepMetrics(
            step=step,
            lr=lr,
            loss=loss,
            grad_norm=grad_norm,
            tokens={p.source: int(n) for p, n in zip(portions, tokens, strict=True)},
            losses=_loss_by_role(portions=portions, losses=losses, targets=targets),
        )


def _sum_by_source(batch: Batch, sources: int, *values: np.ndarray) -> np.ndarray:
    """Sum values of the rows of a batch by source, shape (values, sources)."""
    return np.stack(
        [np.bincount(batch.source, weights=value, minlength=sources) for value in values]
    )


def _loss_by_role(
    *, portions: Sequence[SourceShare], losses: np.ndarray, targets: np.ndarray
) -> dict[Role, float]:
    """Average summed losses over targets within each role; both arrays have shape (sources,)."""
    by_role: dict[Role, float] = {}
    for role in dict.fromkeys(p.role for p in portions):
        indices = [i for i, p in enumerate(portions) if p.role == role]
        if targets[indices].sum():
            by_role[role] = float(losses[indices].sum() / targets[indices].sum())
    return by_role
