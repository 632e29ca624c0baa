"""The learning rate of every step, as numbers."""

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "wsd-1-sqrt", "linear", "constant"]
WSD_SCHEDULES = ("wsd", "wsd-1-sqrt")
"""Schedules that hold the max LR and fall at the end."""


def lr_factor(
    step: int,
    *,
    steps: int,
    schedule: Schedule,
    warmup_steps: int,
    decay_steps: int,
    final: float,
) -> float:
    """Return the factor on the max LR that an optimizer step uses.

    Warmup is linear: with W = `warmup_steps`, step n uses n / W, so step 1 is not 0 and step W is
    the peak. What follows is a function of a progress, which is 1 at the last step, so that the
    last step uses `final` exactly. It is p = (step − W) / (steps − W) for

    - cosine: final + (1 − final) · (1 + cos πp) / 2
      (Loshchilov & Hutter 2017, arXiv 1608.03983)
    - linear: 1 − (1 − final) · p

    and q = (step − (steps − D)) / D with D = `decay_steps` for schedules that are 1 until D steps
    are left:

    - wsd: 1 − (1 − final) · q (Hu et al. 2024, arXiv 2404.06395)
    - wsd-1-sqrt: final + (1 − final) · (1 − √q)
      (Hägele et al. 2024, arXiv 2405.18392, where `final` is 0)

    constant: 1 (`final` and `decay_steps` have no effect).

    Args:
        step: The optimizer step, 1 to `steps`.
        steps: Optimizer steps of the run.
        schedule: How the LR changes after warmup.
        warmup_steps: Steps over which the LR rises, 0 to `steps`.
        decay_steps: Steps over which a `wsd` schedule falls, 0 to `steps − warmup_steps`.
        final: The factor of the last step, 0 to 1.

    Raises:
        ValueError: `step` is not within the run.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not within 1 to {steps}")
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule in WSD_SCHEDULES:
        steps_left = steps - step
        if steps_left >= decay_steps:
            return 1.0
        if schedule == "wsd-1-sqrt":
            return final + (1 - final) * (1 - math.sqrt(1 - steps_left / decay_steps))
        return final + (1 - final) * steps_left / decay_steps
    progress = (step - warmup_steps) / (steps - warmup_steps) if steps > warmup_steps else 1.0
    if schedule == "linear":
        return 1 - (1 - final) * progress
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
