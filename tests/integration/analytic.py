"""A trial runner with known scores in place of a model, for tests of the search itself."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sweepcp.config.budget import Budget
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.space import Point, Range, Space, WeightedSource, recipe_at
from sweepcp.corpora.experiment import load_experiment
from sweepcp.runs.run_folder import RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.cluster import ray_cluster
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.ray_driver import run_trials
from sweepcp.search.worker_io import TrialRunnerProtocol
from sweepcp.training.loop import StepMetrics
from sweepcp.util.progress import NoProgress

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
            document=tuple(f"{index:016x}" for index in range(1, 5)),
            amount=(100 - change,) * 4,
            size=(50.0,) * 4,
        )
        for role, change in (("domain", domain), ("general", general))
    )


@dataclass
class AnalyticRunner:
    """Answers at once; misbehaves as told for a trial's LR fraction."""

    faults: dict[float, str]
    """LR fraction → `raise`, `die`, `nan`, `infinite`, `foreign`, `slow` or `another device`; 0 for
    every trial."""

    @property
    def environment(self) -> dict[str, str]:
        device = "cuda" if "another device" in self.faults.values() else "cpu"
        return {"device": device, "precision": "fp32"}

    def score_base(self) -> BaseRecord:
        return BaseRecord(
            model="analytic",
            parameters=1,
            max_lr=1.0,
            items=items(0, 0),
            environment=self.environment,
            versions={},
        )

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
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


class FinishedTrials(NoProgress):
    """Remembers the numbers of the trials that finished."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def finish(self, task: str) -> None:
        self.numbers.append(int(task))


def make_recipe(point: Point) -> Recipe:
    training = TrainingSettings(seq_len=4, batch_tokens=8)
    return recipe_at(point, SOURCES, training, tokens=80, seed=0)


def run(
    folder: Path,
    trials: int,
    *,
    concurrency: int | None = 2,
    gpus_per_trial: float = 0.0,
    faults: dict[float, str] | None = None,
    make_runner: Callable[[], TrialRunnerProtocol] | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    progress: FinishedTrials | None = None,
) -> FinishedTrials:
    """Search the analytic space for what is missing in a run folder of `trials` trials."""
    progress = progress or FinishedTrials()
    writer = RunWriter(folder)
    if not (folder / "experiment.json").exists():
        experiment, _ = load_experiment("quickstart", ["choose.max_regression=2.0"])
        writer.start(
            experiment.model_copy(update={"name": "analytic", "space": SPACE}), RunIdentity()
        )
    before = read_run(folder)
    budget = Budget(
        trials=trials, tokens=80, concurrency=concurrency, gpus_per_trial=gpus_per_trial
    )
    ledger = TrialLedger(
        writer,
        progress=progress,
        base=before.base,
        finished=before.trials,
        space=SPACE,
        reference=before.experiment.choose.reference,
        make_recipe=make_recipe,
        trials=trials,
        seed=seed,
        retries=budget.retries,
        retry_failed=retry_failed,
    )
    with ray_cluster(None, budget) as slots:
        make_runner = make_runner or partial(AnalyticRunner, faults or {})
        run_trials(ledger, make_runner, budget=budget, slots=slots)
    return progress
