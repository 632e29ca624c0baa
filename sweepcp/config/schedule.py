"""The learning rate of every step, as numbers."""

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "linear", "constant"]


def lr_factor(
    step: int, steps: int, schedule: Schedule, warmup: float, final: float, decay: float
) -> float:
    """The factor on the max LR that optimizer step `step` (1 to `steps`) uses.

    Warmup is linear over `W = round(warmup · steps)` steps: step n uses n / W, so step 1 is not 0 and step W
    is the peak. What follows is a function of the progress p = (step − W) / (steps − W), so the last step uses
    `final` exactly:

    - cosine: final + (1 − final) · (1 + cos πp) / 2  (Loshchilov & Hutter 2017, arXiv 1608.03983)
    - linear: 1 − (1 − final) · p
    - wsd: 1, then linear to `final` over the last `round(decay · steps)` steps  (Hu et al. 2024, arXiv 2404.06395)
    - constant: 1 (`final` and `decay` have no effect)
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not within 1 to {steps}")
    rise = round(warmup * steps)
    if step < rise:
        return step / rise
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        fall = min(round(decay * steps), steps - rise)
        left = steps - step
        return 1.0 if left >= fall else final + (1 - final) * left / fall
    progress = (step - rise) / (steps - rise) if steps > rise else 1.0
    if schedule == "linear":
        return 1 - (1 - final) * progress
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
