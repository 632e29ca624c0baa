"""A bench with a known answer in place of a model, for tests of the search itself."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sweepcp.config.budget import Budget
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.space import Point, Range, Space, WeightedSource, recipe_at
from sweepcp.runs.run_folder import RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, Proposer, Trial, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.ray_driver import ray_cluster, run_trials
from sweepcp.training.loop import StepMetrics

SPACE = Space(
    lr_fraction=Range(low=0.01, high=1.0, scale="log"),
    general_share=Range(low=0.0, high=1.0, scale="sqrt"),
    anchors=({"lr_fraction": 0.1, "general_share": 0.5},),
)
SOURCES = [
    WeightedSource(name="code", role="domain", language="python", weight=1),
    WeightedSource(name="docs", role="general", language="en", weight=1),
]


def answer(lr_fraction: float, general_share: float) -> tuple[float, float]:
    """Domain and general change in %: no LR but 0.3 is on the front, the share moves along it."""
    miss = 4 * abs(math.log10(lr_fraction / 0.3))
    return 12 * (1 - general_share) - miss, -10 * (1 - general_share) ** 2 - miss


def items(domain: float, general: float) -> tuple[ItemScores, ...]:
    """Four documents a suite that all changed by as much."""
    return tuple(
        ItemScores(
            name=f"held_out_{role}",
            role=role,  # type: ignore[arg-type]
            language="en",
            unit="bits per byte",
            weight=1.0,
            select=(True, False, True, False),
            amount=(100 - change,) * 4,
            size=(50.0,) * 4,
        )
        for role, change in (("domain", domain), ("general", general))
    )


@dataclass
class AnalyticBench:
    """Answers at once; misbehaves as told for the n-th of the anchors' and starting points' LR fractions."""

    faults: dict[float, str]
    """LR fraction → `raise`, `die`, `nan`, `infinite`, `foreign` or `hang`."""

    def base(self) -> BaseRecord:
        if "base" in self.faults.values():
            raise RuntimeError("no such model")
        return BaseRecord(
            model="analytic", parameters=1, max_lr=1.0, items=items(0, 0), versions={}
        )

    def run(self, recipe: Recipe) -> Iterator[StepMetrics | TrialOutcome]:
        fault = self.faults.get(recipe.lr_fraction) or self.faults.get(0.0)
        yield StepMetrics(1, 0.1, 2.0, 1.0, {"code": 8}, {"domain": 2.0})
        if fault == "raise":
            raise RuntimeError("out of memory")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            time.sleep(1)
        if fault == "nan":
            yield TrialOutcome(status="diverged", reason="step 2 of 10: loss nan")
            return
        scored = items(*answer(recipe.lr_fraction, recipe.general_share))
        if fault == "infinite":
            items(-math.inf, 0)
        if fault == "foreign":
            scored = scored[:1]
        yield TrialOutcome(status="done", items=scored)


class Silent:
    """Nobody looks on; remembers the trials."""

    def __init__(self) -> None:
        self.seen: list[Trial] = []

    def trial_started(self, trial_id: str, point: Point, by: Proposer) -> None: ...

    def trial_stepped(self, trial_id: str, step: int, steps: int) -> None: ...

    def trial_finished(self, trial: Trial) -> None:
        self.seen.append(trial)


def at(point: Point) -> Recipe:
    return recipe_at(point, SOURCES, TrainingSettings(seq_len=4, batch_tokens=8), 80, 0)


def run(
    folder: Path,
    trials: int,
    concurrency: int = 2,
    faults: dict[float, str] | None = None,
    seed: int = 0,
) -> Silent:
    """Search the analytic space for what is missing in a run folder of `trials` trials."""
    return run_bench(folder, trials, concurrency, lambda: AnalyticBench(faults or {}), seed)


def run_bench(
    folder: Path, trials: int, concurrency: int, make: Callable[[], AnalyticBench], seed: int
) -> Silent:
    watch = Silent()
    writer = RunWriter(folder)
    if not (folder / "experiment.json").exists():
        reference = {"domain": -10.0, "general": -50.0}
        writer.start(
            {"name": "analytic", "choose": {"max_regression": 2.0, "reference": reference}}, {}
        )
    before = read_run(folder)
    book = TrialLedger(writer, watch, before.base, before.trials, SPACE, at, trials, seed)
    budget = Budget(trials=trials, tokens=80, concurrency=concurrency)
    with ray_cluster(None, budget) as room:
        run_trials(book, make, budget, room)
    return watch
