"""What a recipe demands of any trainer, and how what a trainer has parsed is compared with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweepcp.promote.bundle import Bundle

SHARE_TOLERANCE = 1e-3
"""Shares of tokens may differ by so much."""
AREA_TOLERANCE = 1e-3
"""The sum of the LR over all steps may differ by this part of it, or by one step at the max LR, if that is more."""
MIX_NOT_WRITTEN = "the mix is not written yet"
"""What a reader says of the shares where the trainer reads a mix that `prepare.sh` has not made."""
FACTS = {
    "steps": "optimizer steps",
    "lr": "LR of every step",
    "batch": "tokens in a batch",
    "seq_len": "tokens in a sequence",
    "shares": "share of tokens of each source",
    "optimizer": "AdamW: betas, epsilon, weight decay",
    "decayed": "what weight decay applies to",
    "clip": "largest gradient norm",
    "loss": "what the loss is averaged over",
    "precision": "precision",
    "attention": "attention between documents",
    "targets": "targets across documents",
    "order": "order of the sequences",
    "seed": "seed",
    "model": "model",
    "checkpoints": "steps between checkpoints, and how many are kept",
    "tracking": "trackers",
}
"""Every fact that is compared, and what it is called."""


def recipe_facts(bundle: Bundle) -> dict[str, Any]:
    """The facts of a bundle's recipe, by their names in `FACTS`.

    Its `lr` begins with what precedes step 1: 0 where there is a warmup, the max LR where there is none.
    """
    recipe = bundle.recipe
    before = 0.0 if recipe.warmup_steps else recipe.lr_fraction * bundle.model.max_lr
    return {
        "steps": recipe.steps,
        "lr": [
            before,
            *(recipe.lr(step, bundle.model.max_lr) for step in range(1, recipe.steps + 1)),
        ],
        "batch": recipe.batch_tokens,
        "seq_len": recipe.seq_len,
        "shares": {p.source: p.share for p in recipe.mixture.portions},
        "optimizer": [*recipe.betas, 1e-8, recipe.weight_decay],
        "decayed": "matrices",
        "clip": recipe.clip,
        "loss": "targets of the whole batch",
        "precision": bundle.target.compute.precision,
        "attention": "across" if recipe.cross_documents else "within",
        "targets": "across" if recipe.cross_documents else "within",
        "order": "the stream",
        "seed": recipe.seed,
        "model": bundle.model.path or bundle.model.hub,
        "checkpoints": [bundle.target.checkpoints.every, bundle.target.checkpoints.keep],
        "tracking": sorted(bundle.target.tracking),
    }


@dataclass(frozen=True)
class Finding:
    """A fact or a setting that was compared."""

    what: str
    """A name of `FACTS`, or `setting KEY`."""
    agrees: bool | None
    """None: it cannot be told yet."""
    detail: str
    """The numbers, where there is something to say."""


def compare_facts(
    wanted: dict[str, Any], found: dict[str, Any], settings: dict[str, Any], parsed: dict[str, Any]
) -> list[Finding]:
    """Facts and settings that were wanted, against those that a peer has parsed. A fact that is missing disagrees."""
    findings = [_compare_fact(name, wanted[name], found.get(name)) for name in FACTS]
    for key, value in settings.items():
        there = parsed.get(key, "nothing")
        agrees = is_same(value, there)
        findings.append(
            Finding(
                f"setting {key}", agrees, "" if agrees else f"written {value!r}, parsed {there!r}"
            )
        )
    return findings


def is_same(one: Any, other: Any) -> bool:
    """Equality of parsed values; numbers to 1e-12 of their size, and never a bool for a number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=0)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _compare_fact(name: str, wanted: Any, found: Any) -> Finding:
    if found is None:
        return Finding(name, False, "not stated by the trainer's configuration")
    if found == MIX_NOT_WRITTEN:
        return Finding(name, None, found)
    if name == "lr":
        return Finding(name, *is_same_lr(wanted, found))
    if name == "shares":
        return Finding(name, *_is_same_shares(wanted, found))
    agrees = is_same(wanted, found)
    return Finding(name, agrees, "" if agrees else f"the recipe says {wanted}, the trainer {found}")


def is_same_lr(wanted: Sequence[float], found: Sequence[float]) -> tuple[bool, str]:
    """Whether an LR curve agrees with the recipe's, which begins with what precedes step 1; and how they differ.

    Trainers begin to count at 0 or at 1. So each step's LR has to lie between those that the recipe has one step before
    and one step after, and the areas have to agree to `AREA` or one step.
    """
    if len(wanted) != len(found) + 1:
        return False, f"{len(wanted) - 1} steps in the recipe, {len(found)} there"
    peak = max(wanted)
    slack = 1e-9 * peak
    for step, there in enumerate(found, start=1):
        near = wanted[step - 1 : step + 2]
        if not min(near) - slack <= there <= max(near) + slack:
            return False, f"step {step}: {wanted[step]:.6g} in the recipe, {there:.6g} there"
    area, there = math.fsum(wanted[1:]), math.fsum(found)
    difference = f"area {there / area - 1:+.4%}"
    return abs(there - area) <= max(AREA_TOLERANCE * area, peak * (1 + 1e-9)), difference


def _is_same_shares(wanted: dict[str, float], found: dict[str, float]) -> tuple[bool, str]:
    if wanted.keys() != found.keys():
        return False, f"sources {sorted(wanted)} in the recipe, {sorted(found)} there"
    worst = max(wanted, key=lambda name: abs(wanted[name] - found[name]))
    agrees = abs(wanted[worst] - found[worst]) <= SHARE_TOLERANCE
    return agrees, f"{worst}: {wanted[worst]:.2%} in the recipe, {found[worst]:.2%} there"
