"""Facts that a recipe fixes for any trainer, and their comparison with what a trainer parsed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweepcp.promote.bundle import Bundle

SHARE_TOLERANCE = 1e-3
"""Largest accepted difference of a token share."""
AREA_TOLERANCE = 1e-3
"""Accepted relative difference of the LR's sum over all steps; one step at max LR is accepted."""
MIX_NOT_WRITTEN = "the mix has not been written yet"
"""Value of `shares` that readers return before `prepare.sh` has written the mix."""
FACTS = {
    "steps": "optimizer steps",
    "lr": "LR per step",
    "batch": "tokens per batch",
    "seq_len": "sequence length",
    "shares": "token share per source",
    "optimizer": "AdamW betas, epsilon, weight decay",
    "decayed": "parameters with weight decay",
    "clip": "gradient clipping norm",
    "dropout": "dropout and router jitter",
    "loss": "loss averaging",
    "precision": "precision",
    "attention": "attention across documents",
    "targets": "targets across documents",
    "order": "sequence order",
    "seed": "seed",
    "model": "model",
    "checkpoints": "checkpoint interval and retention",
    "tracking": "experiment trackers",
}
"""Key of every fact that is compared → its label."""


@dataclass(frozen=True)
class Finding:
    """Result of comparing one fact or one setting."""

    name: str
    """A key of `FACTS`, or `setting KEY`."""
    agrees: bool | None
    """None if it cannot be compared yet."""
    detail: str
    """The two values, where there is something to report."""

    @property
    def label(self) -> str:
        """Label of the fact, or the name of the setting."""
        return FACTS.get(self.name, self.name)


def recipe_facts(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a bundle's recipe.

    Returns:
        The keys of `FACTS` with their values. `lr` has `steps + 1` entries: the first precedes
        step 1 and is 0 with a warmup and the max LR without one.
    """
    recipe, target = bundle.recipe, bundle.target
    max_lr = bundle.model.max_lr
    lr_before = 0.0 if recipe.warmup_length else recipe.lr_fraction * max_lr
    lr_per_step = [recipe.lr(step, max_lr=max_lr) for step in range(1, recipe.steps + 1)]
    across_or_within = "across" if recipe.cross_documents else "within"
    return {
        "steps": recipe.steps,
        "lr": [lr_before, *lr_per_step],
        "batch": recipe.batch_tokens,
        "seq_len": recipe.seq_len,
        "shares": {p.source: p.share for p in recipe.mixture.portions},
        "optimizer": [*recipe.betas, recipe.epsilon, recipe.weight_decay],
        "decayed": "matrices",
        "clip": recipe.clip,
        "dropout": 0.0,
        "loss": "mean over the targets of the whole batch",
        "precision": target.compute.precision,
        "attention": across_or_within,
        "targets": across_or_within,
        "order": "stream order",
        "seed": recipe.seed,
        "model": bundle.model.path or bundle.model.hub,
        "checkpoints": [target.checkpoints.every, target.checkpoints.keep],
        "tracking": sorted(target.tracking),
    }


def compare_facts(*, expected: dict[str, Any], parsed: dict[str, Any]) -> list[Finding]:
    """Compare the facts of the recipe with those of a trainer; a missing fact disagrees."""
    return [_compare_fact(name, expected=expected[name], parsed=parsed.get(name)) for name in FACTS]


def compare_settings(*, written: dict[str, Any], parsed: dict[str, Any]) -> list[Finding]:
    """Compare the settings that were written with those that a trainer parsed."""
    findings = []
    for key, value in written.items():
        parsed_value = parsed.get(key, "nothing")
        agrees = is_same(value, parsed_value)
        detail = "" if agrees else f"written {value!r}, parsed {parsed_value!r}"
        findings.append(Finding(f"setting {key}", agrees, detail))
    return findings


def is_same(left: Any, right: Any) -> bool:
    """Return whether parsed values are equal: numbers to 1e-12 relatively, no bool for a number."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-12, abs_tol=0)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(is_same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(is_same, left, right))
    return type(left) is type(right) and bool(left == right)


def is_same_lr(*, expected: Sequence[float], parsed: Sequence[float]) -> tuple[bool, str]:
    """Return whether an LR curve agrees with the recipe's.

    Schedulers count steps from 0 or from 1, so a trainer's curve may be one step off. The LR of
    each step must lie between the recipe's values one step before and one step after, and the sums
    over all steps must agree to `AREA_TOLERANCE` or one step at max LR, whichever is larger.

    Args:
        expected: LR that precedes step 1, then the LR of each step; `steps + 1` values.
        parsed: LR of each step; `steps` values.

    Returns:
        Whether they agree, and how they differ.
    """
    if len(expected) != len(parsed) + 1:
        return False, f"{len(expected) - 1} steps in the recipe, {len(parsed)} in the trainer"
    max_lr = max(expected)
    rounding = 1e-9 * max_lr
    for step, lr in enumerate(parsed, start=1):
        neighbours = expected[step - 1 : step + 2]
        if not min(neighbours) - rounding <= lr <= max(neighbours) + rounding:
            detail = f"step {step}: {expected[step]:.6g} in the recipe, {lr:.6g} in the trainer"
            return False, detail
    expected_area, parsed_area = math.fsum(expected[1:]), math.fsum(parsed)
    tolerance = max(AREA_TOLERANCE * expected_area, max_lr * (1 + 1e-9))
    agrees = abs(parsed_area - expected_area) <= tolerance
    return agrees, f"area {parsed_area / expected_area - 1:+.4%}"


def _compare_fact(name: str, *, expected: Any, parsed: Any) -> Finding:
    if parsed is None:
        return Finding(name, agrees=False, detail="not stated by the trainer's configuration")
    if parsed == MIX_NOT_WRITTEN:
        return Finding(name, agrees=None, detail=parsed)
    if name == "lr":
        return Finding(name, *is_same_lr(expected=expected, parsed=parsed))
    if name == "shares":
        return Finding(name, *_is_same_shares(expected=expected, parsed=parsed))
    agrees = is_same(expected, parsed)
    detail = "" if agrees else f"the recipe has {expected}, the trainer {parsed}"
    return Finding(name, agrees, detail)


def _is_same_shares(*, expected: dict[str, float], parsed: dict[str, float]) -> tuple[bool, str]:
    if expected.keys() != parsed.keys():
        detail = f"sources {sorted(expected)} in the recipe, {sorted(parsed)} in the trainer"
        return False, detail
    worst = max(expected, key=lambda name: abs(expected[name] - parsed[name]))
    agrees = abs(expected[worst] - parsed[worst]) <= SHARE_TOLERANCE
    detail = f"{worst}: {expected[worst]:.2%} in the recipe, {parsed[worst]:.2%} in the trainer"
    return agrees, detail
