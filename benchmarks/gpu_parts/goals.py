"""What the parts were to reach, as ratios within one run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts.results import read_result
from gpu_parts.settings import TINY, Finding, Skipped

LARGEST_MEMORY_ERROR = 0.15
"""Of the estimate."""
LARGEST_SCORE_DIFFERENCE = 1e-4
"""Of a GPU's scores in fp32 from a CPU's, relative."""


@dataclass(frozen=True)
class Ratio:
    """A number of one part as a multiple of that of another one."""

    name: str
    part: str
    other: str
    key: str
    at_least: float


RATIOS = (
    Ratio("eager, without packing", "unpacked", "plain", "tokens_per_second", 0.95),
    Ratio("compiled", "unpacked-compiled", "plain-compiled", "tokens_per_second", 0.9),
    Ratio("packed and isolated", "packed", "plain", "tokens_per_second", 0.85),
    Ratio("four at 0.25, 0.1 M", "quickstart-0.25", "quickstart", "trials_per_hour", 2.0),
    Ratio("four at 0.25, 15 M", "15m-0.25", "15m", "trials_per_hour", 2.0),
)
MEMORY = ("packed", "unpacked", "sdpa", "varlen", "flash", "zero")
"""Parts whose measured memory is divided by its estimate."""


def goals(work: Path) -> Finding:
    """Compare what the parts have measured with the goals."""
    results: dict[str, Any] = {}
    texts, missing = [], []
    for ratio in RATIOS:
        reached = numbers_of(work, ratio.part).get(ratio.key)
        compared = numbers_of(work, ratio.other).get(ratio.key)
        if reached is None or compared is None:
            missing.append(ratio.name)
            continue
        value = reached / compared
        met = value >= ratio.at_least
        results[ratio.name] = {"value": value, "goal": ratio.at_least, "met": met}
        texts.append(f"{ratio.name} {value:.2f} × (goal {ratio.at_least:g}): {verdict(met)}")
    for part in MEMORY:
        value = numbers_of(work, part).get("memory_ratio")
        if value is not None:
            met = abs(value - 1) <= LARGEST_MEMORY_ERROR
            results[f"memory of {part}"] = {"value": value, "met": met}
            texts.append(
                f"memory of {part} {value:.2f} × the estimate (goal ± 15 %): {verdict(met)}"
            )
    scores = numbers_of(work, "agreement").get("fp32")
    if scores is not None:
        value = max(scores["scores"].values())
        met = value <= LARGEST_SCORE_DIFFERENCE
        results["scores in fp32"] = {"value": value, "met": met}
        texts.append(f"scores in fp32 {value:.1e} from a CPU's (goal 1e-4): {verdict(met)}")
    if not results:
        raise Skipped("none of the parts that have goals has run")
    if missing:
        texts.append(f"not measured: {', '.join(missing)}")
    return Finding("; ".join(texts), results)


def numbers_of(work: Path, part: str) -> dict[str, Any]:
    """Return the numbers of a part; none if it was not run, or failed."""
    result = read_result(work, part)
    return result.numbers if result else {}


def verdict(met: bool) -> str:
    """Return whether a goal is met. In the rehearsal only the arithmetic is tried."""
    if TINY:
        return "a rehearsal"
    return "met" if met else "NOT MET"
