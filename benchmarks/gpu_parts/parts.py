"""The parts of the benchmark, in the order of their importance."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_parts.settings import TINY, Finding

REHEARSAL = 4.0
"""How many times as long a part may take in the rehearsal."""


@dataclass(frozen=True)
class Part:
    """A function that measures something, and its limit."""

    name: str
    function: str
    """Module of `gpu_parts` and function."""
    seconds: float
    """Time limit on a GPU."""
    arguments: dict[str, Any] = field(default_factory=dict)
    rehearsed_by: str | None = None
    """A part of the same code, which the rehearsal runs in place of this one."""

    @property
    def limit(self) -> float:
        """Seconds that it may take here."""
        return self.seconds * (REHEARSAL if TINY else 1)

    def run(self, work: Path) -> Finding:
        """Call the function, in this process."""
        module, _, name = self.function.partition(".")
        finding: Finding = getattr(import_module(f"gpu_parts.{module}"), name)(
            work, **self.arguments
        )
        return finding


PARTS = (
    Part("machine", "machine.versions_and_peak", 40),
    Part("isolation", "agreement.isolation", 45),
    Part("agreement", "agreement.gpu_against_cpu", 45),
    Part("plain", "steps.plain", 40),
    Part("unpacked", "steps.trial", 40, {"packed": False}),
    Part("packed", "steps.trial", 45),
    Part("quickstart", "searches.quickstart", 110, {"share": 1.0, "trials": 4}),
    Part("quickstart-0.25", "searches.quickstart", 70, {"share": 0.25, "trials": 8}),
    Part("quickstart-cpu", "searches.quickstart", 70, {"share": 0.0, "trials": 2}),
    Part("promote", "full_run.promote", 30),
    Part("train", "full_run.train", 60),
    Part("zero", "full_run.zero_steps", 60),
    Part("scoring", "agreement.scoring_speed", 45),
    Part("out-of-memory", "memory.out_of_memory", 45),
    Part("15m", "searches.rate", 60, {"size": "15m", "share": 1.0}),
    Part("15m-0.25", "searches.rate", 60, {"size": "15m", "share": 0.25}),
    Part("plain-compiled", "steps.plain", 150, {"compiled": True}),
    Part("unpacked-compiled", "steps.trial", 90, {"packed": False, "compiled": True}),
    Part("sdpa", "steps.trial", 45, {"attention": "sdpa"}),
    Part("varlen", "steps.trial", 45, {"attention": "varlen"}),
    Part("flash", "steps.trial", 45, {"attention": "flash_attention_2"}),
    Part("packed-compiled", "steps.trial", 90, {"compiled": True}),
    Part("135m", "searches.rate", 90, {"size": "135m", "share": 1.0}, "15m"),
    Part("135m-0.5", "searches.rate", 90, {"size": "135m", "share": 0.5}, "15m-0.25"),
    Part("15m-0.5", "searches.rate", 60, {"size": "15m", "share": 0.5}, "15m-0.25"),
    Part("135m-0.25", "searches.rate", 90, {"size": "135m", "share": 0.25}, "15m-0.25"),
    Part(
        "quickstart-0.5",
        "searches.quickstart",
        60,
        {"share": 0.5, "trials": 8},
        "quickstart-0.25",
    ),
)
GOALS = Part("goals", "goals.goals", 10)
"""Compares what the other parts measured, so it is always the last one."""
BY_NAME = {part.name: part for part in (*PARTS, GOALS)}
