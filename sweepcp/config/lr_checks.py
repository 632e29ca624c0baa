"""Checks of numbers of steps and learning rates against the run that they belong to."""

from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import RELATIVE_FIELDS, TrainingSettings
from sweepcp.config.space import Space
from sweepcp.errors import InvalidInput, located

ROUNDING = 1e-9
"""Relative difference of two learning rates that counts as none: 0.1 × 3e-4 is not quite 3e-5."""


def check_warmup_steps(warmup_steps: float | None, *, steps: int) -> None:
    """Raise `InvalidInput` if a run of so many steps would not get beyond its warmup."""
    if warmup_steps is not None and warmup_steps >= steps:
        raise InvalidInput(
            key="warmup_steps",
            found=warmup_steps,
            rule=f"fewer steps than the run has, which are {steps:,} (tokens / batch_tokens)",
            fix="lower warmup_steps, or state `warmup`, a share of the steps, instead",
        )


def check_min_lr(min_lr: float | None, *, lr_fraction: float, base_max_lr: float) -> None:
    """Raise `InvalidInput` if the LR of a last step would be above the run's max LR.

    Args:
        min_lr: The LR of the last step, if the recipe states it as such.
        lr_fraction: The max LR of the run as a fraction; the lowest of a search.
        base_max_lr: The max LR of the base's own pretraining.
    """
    max_lr = lr_fraction * base_max_lr
    if min_lr is not None and min_lr > max_lr * (1 + ROUNDING):
        raise InvalidInput(
            key="min_lr",
            found=min_lr,
            rule=f"at most the lowest max LR, {max_lr:.6g} (lr_fraction {lr_fraction:g} of the "
            f"base's {base_max_lr:g})",
            fix="lower min_lr, raise lr_fraction, or state `final_fraction`, a fraction of the max "
            "LR, instead",
        )


def check_learning_rates(experiment: Experiment) -> None:
    """Raise `InvalidInput` if a trial, or the pretraining of the base, has no valid LR schedule."""
    base, space, training = experiment.base, experiment.space, experiment.training
    _check_alternatives(space, training)
    steps = experiment.budget.tokens // training.batch_tokens
    lowest_fraction, _ = space.bounds("lr_fraction")
    for section, warmup_steps, min_lr in (
        ("training", training.warmup_steps, training.min_lr),
        ("space", _highest(space, "warmup_steps"), _highest(space, "min_lr")),
    ):
        with located("", section):
            check_warmup_steps(warmup_steps, steps=steps)
            check_min_lr(min_lr, lr_fraction=lowest_fraction, base_max_lr=base.max_lr)
    if base.pretrain is not None:
        settings = base.pretrain.training
        with located("", "base.pretrain.training"):
            steps = base.pretrain.tokens // settings.batch_tokens
            check_warmup_steps(settings.warmup_steps, steps=steps)
            check_min_lr(settings.min_lr, lr_fraction=1.0, base_max_lr=base.max_lr)


def _check_alternatives(space: Space, training: TrainingSettings) -> None:
    """Raise `InvalidInput` if the space varies what an absolute number of `training` replaces."""
    for absolute, relative in RELATIVE_FIELDS.items():
        value = getattr(training, absolute)
        if value is not None and relative in space.axes:
            raise InvalidInput(
                key=f"training.{absolute}",
                found=value,
                rule=f"none beside an axis of the space over {relative}, which it stands in place "
                "of",
                fix=f"remove it, or remove the axis {relative} from the space",
            )


def _highest(space: Space, name: str) -> float | None:
    return space.bounds(name)[1] if name in space.axes else None
