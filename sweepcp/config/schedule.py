"""The learning rate of every step, as numbers."""

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "linear", "constant"]


def lr_factor(
    step: int, *, steps: int, schedule: Schedule, warmup: float, final: float, decay: float
) -> float:
    """Return the factor on the max LR that an optimizer step uses.

    Warmup is linear over `W = round(warmup · steps)` steps: step n uses n / W, so step 1 is not 0
    and step W is the peak. What follows is a function of the progress
    p = (step − W) / (steps − W), so the last step uses `final` exactly:

    - cosine: final + (1 − final) · (1 + cos πp) / 2
      (Loshchilov & Hutter 2017, arXiv 1608.03983)
    - linear: 1 − (1 − final) · p
    - wsd: 1, then linear to `final` over the last `round(decay · steps)` steps
      (Hu et al. 2024, arXiv 2404.06395)
    - constant: 1 (`final` and `decay` have no effect)

    Args:
        step: The optimizer step, 1 to `steps`.
        steps: Optimizer steps of the run.
        schedule: How the LR changes after warmup.
        warmup: Share of the steps over which the LR rises, 0 to 1.
        final: The factor of the last step, 0 to 1.
        decay: Share of the steps over which a `wsd` schedule falls, 0 to 1.

    Raises:
        ValueError: `step` is not within the run.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not within 1 to {steps}")
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        decay_steps = min(round(decay * steps), steps - warmup_steps)
        steps_left = steps - step
        if steps_left >= decay_steps:
            return 1.0
        return final + (1 - final) * steps_left / decay_steps
    progress = (step - warmup_steps) / (steps - warmup_steps) if steps > warmup_steps else 1.0
    if schedule == "linear":
        return 1 - (1 - final) * progress
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
