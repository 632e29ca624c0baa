"""How sure front and choice are, by drawing the items again. Noise of evaluation only: trials keep their one seed."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, TypeAdapter

from sweepcp.runs.front import choose_point, is_on_front
from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import ItemScores, Split, Unit

RESAMPLES = 500
"""Resamples: a probability of one half is known to ± 2.2 points."""


class MeasuredItems(BaseModel):
    """What resampling needs of `Items`; the rest of a file, which is most of it, is not made into objects."""

    unit: Unit
    amount: list[float]


MEASURED_ITEMS = TypeAdapter(list[MeasuredItems])


@dataclass(frozen=True)
class FrontCertainty:
    """What became of a run in resamples of its items. Probabilities are over evaluation noise alone."""

    on_front: dict[str, float]
    """Trial → share of the resamples in which no other dominates it; of trials whose items are at hand."""
    chosen: dict[str, float]
    """Trial → share of the resamples in which the rule chooses it."""
    none: float
    """Share of the resamples in which the rule chooses none."""
    within: float | None
    """Share of the resamples of the reporting half in which the choice keeps the bound of the rule, if it has one."""


def estimate_certainty(run: Run) -> FrontCertainty | None:
    """Resample the items of every suite member `DRAWS` times, the same ones for every trial and the base.

    The bootstrap of paired items (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 6). None when no
    trial is done, or when a done trial has no items: then nothing can be said of the front.
    """
    done = run.done
    base = [m for m in run.base.items if m.unit == "bits per byte"] if run.base else []
    amounts = _read_amounts(run, [t.id for t in done])
    if not done or amounts is None:
        return None
    points = resampled_scores(amounts, base, "select", np.random.default_rng(0))
    on, chosen, none = np.zeros(len(done)), np.zeros(len(done)), 0
    for draw in points:
        best = is_on_front(draw)
        on += best
        pick = choose_point(draw[best], run.rule)
        if pick is None:
            none += 1
        else:
            chosen[np.flatnonzero(best)[pick]] += 1
    names = [t.id for t in done]
    within = None
    if run.rule.max_regression is not None and run.chosen is not None:
        own = [member[[names.index(run.chosen.id)]] for member in amounts]
        general = resampled_scores(own, base, "report", np.random.default_rng(1))[:, 0, 1]
        within = float(np.mean(general >= -run.rule.max_regression))
    return FrontCertainty(
        on_front=dict(zip(names, (on / RESAMPLES).tolist(), strict=True)),
        chosen=dict(zip(names, (chosen / RESAMPLES).tolist(), strict=True)),
        none=none / RESAMPLES,
        within=within,
    )


def _read_amounts(run: Run, ids: list[str]) -> list[np.ndarray] | None:
    """For each continuous member the bits of its items in n trials, shape (n, items); None if some are missing."""
    rows = []
    for trial_id in ids:
        file = run.folder(trial_id) / "items.json"
        if not file.exists():
            return None
        measured = MEASURED_ITEMS.validate_json(file.read_bytes())
        rows.append([np.array(m.amount) for m in measured if m.unit == "bits per byte"])
    return [np.stack(member) for member in zip(*rows, strict=True)]


def resampled_scores(
    amounts: list[np.ndarray], base: list[ItemScores], half: Split, rng: np.random.Generator
) -> np.ndarray:
    """`domain` and `general` of n trials in every draw, shape (DRAWS, n, 2), in %.

    As `scorecard` computes them, from items that are drawn with replacement within each member: `amounts` holds the
    bits of each member of `base`, shape (n, items). All trials and the base have the same items in a draw.
    """
    scalars = np.zeros((RESAMPLES, len(amounts[0]), 2))
    for bits, member in zip(amounts, base, strict=True):
        mask = np.array(member.select) == (half == "select")
        count = int(mask.sum())
        times = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
        before = times @ np.array(member.amount)[mask]
        weight = member.weight / sum(m.weight for m in base if m.role == member.role)
        change = 100 * (1 - times @ bits[:, mask].T / before[:, None])
        scalars[:, :, ("domain", "general").index(member.role)] += weight * change
    return scalars
