"""How sure front and choice are, by drawing the items again. Noise of evaluation only: trials keep their one seed."""

from dataclasses import dataclass

import numpy as np

from sweepcp.front import choose, on_front
from sweepcp.run import Run
from sweepcp.scorecard import Half, Items

DRAWS = 500
"""Resamples: a probability of one half is known to ± 2.2 points."""


@dataclass(frozen=True)
class Certainty:
    """What became of a run in resamples of its items. Probabilities are over evaluation noise alone."""

    on_front: dict[str, float]
    """Trial → share of the resamples in which no other dominates it; of trials whose items are at hand."""
    chosen: dict[str, float]
    """Trial → share of the resamples in which the rule chooses it."""
    none: float
    """Share of the resamples in which the rule chooses none."""
    within: float | None
    """Share of the resamples of the reporting half in which the choice keeps the bound of the rule, if it has one."""


def certainty(run: Run, seed: int = 0) -> Certainty | None:
    """Resample the items of every suite member `DRAWS` times, the same ones for every trial and the base.

    The bootstrap of paired items (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 6). None when no
    trial is done, or when a done trial has no items: then nothing can be said of the front.
    """
    done = [t for t in run.trials if t.status == "done"]
    measured = [run.items(t.id) for t in done]
    if run.base is None or not done or any(m is None for m in measured):
        return None
    known = [m for m in measured if m is not None]
    base = list(run.base.items)
    points = resampled(known, base, "select", np.random.default_rng([seed, 0]))
    on, chosen, none = np.zeros(len(done)), np.zeros(len(done)), 0
    for draw in points:
        best = on_front(draw)
        on += best
        pick = choose(draw[best], run.rule)
        if pick is None:
            none += 1
        else:
            chosen[np.flatnonzero(best)[pick]] += 1
    names = [t.id for t in done]
    within = None
    if run.rule.max_regression is not None and run.chosen is not None:
        own = [known[names.index(run.chosen.id)]]
        general = resampled(own, base, "report", np.random.default_rng([seed, 1]))[:, 0, 1]
        within = float(np.mean(general >= -run.rule.max_regression))
    return Certainty(
        on_front=dict(zip(names, (on / DRAWS).tolist(), strict=True)),
        chosen=dict(zip(names, (chosen / DRAWS).tolist(), strict=True)),
        none=none / DRAWS,
        within=within,
    )


def resampled(trials: list[list[Items]], base: list[Items], half: Half, rng: np.random.Generator) -> np.ndarray:
    """`domain` and `general` of n trials in every draw, shape (DRAWS, n, 2), in %.

    As `scorecard` computes them, from items that are drawn with replacement within each member.
    """
    scalars = np.zeros((DRAWS, len(trials), 2))
    for column, role in enumerate(("domain", "general")):
        own = [k for k, m in enumerate(base) if m.role == role and m.unit == "bits per byte"]
        total = sum(base[k].weight for k in own)
        for k in own:
            mask = np.array(base[k].select) == (half == "select")
            count = int(mask.sum())
            times = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
            amounts = np.array([t[k].amount for t in trials])[:, mask]
            before = np.array(base[k].amount)[mask]
            change = 100 * (1 - times @ amounts.T / (times @ before)[:, None])
            scalars[:, :, column] += base[k].weight / total * change
    return scalars
