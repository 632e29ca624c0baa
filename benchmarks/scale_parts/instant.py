"""Trials that cost nothing: a search of them measures the driver alone.

Everything but the runner is that of a real search: Ray, Ray Tune, the sampler, the ledger and the
run folder. A trial reports as many steps and items as one of the quickstart.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from scale_parts.growth import Growth
from sweepcp.config.budget import Budget
from sweepcp.config.recipe import Recipe
from sweepcp.corpora.experiment import load_experiment
from sweepcp.runs.run_folder import RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.cluster import ray_cluster
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.ray_driver import run_trials
from sweepcp.training.loop import StepMetrics
from sweepcp.util.progress import NoProgress
from tests.make import documents, items
from tests.make_run import scores_at

STEPS = 100
MEMBERS = (("held_out", 1, 48, 48), ("cloze", 2, 160, 40), ("swap", 2, 160, 40))
"""Members of each of the quickstart's suites: name, number of units, items and documents."""
UNITS = ("bits per byte", "accuracy")
SIZES = (10, 30, 100, 300, 1000, 2000)
WINDOW = 100
"""Trials per line of the finer table."""


def quickstart_items(*, domain: float, general: float, factor: int = 1) -> tuple[ItemScores, ...]:
    """Return items like those of the quickstart that changed by so much.

    Args:
        domain: Change of the domain suite's members in bits per byte, in %.
        general: The same of the general suite.
        factor: How many times as many items and documents.
    """
    rng = np.random.default_rng(5)
    made = []
    for role, change in (("domain", domain), ("general", general)):
        for name, units, count, distinct in MEMBERS:
            sizes = rng.uniform(50, 150, factor * count)
            noise = 1 + rng.normal(0, 0.1, factor * count)
            ids = documents(f"{name}-{role}", factor * distinct)
            bits = 2 * sizes * (1 - change * noise / 100)
            right = (rng.uniform(0, 1, factor * count) < 0.5).astype(float)
            for unit in UNITS[:units]:
                is_accuracy = unit == "accuracy"
                made.append(
                    items(
                        role,
                        (right if is_accuracy else bits).tolist(),
                        None if is_accuracy else sizes.tolist(),
                        name=f"{name}-{role}",
                        unit=unit,
                        document=tuple(ids[i % len(ids)] for i in range(factor * count)),
                    )
                )
    return tuple(made)


class InstantRunner:
    """Answers at once, with scores that follow a formula of the recipe."""

    environment = {"device": "cpu", "precision": "fp32"}  # noqa: RUF012  # of a protocol

    def score_base(self) -> BaseRecord:
        return BaseRecord(
            model="a base",
            parameters=111_040,
            max_lr=3e-3,
            items=quickstart_items(domain=0, general=0),
            environment=self.environment,
            versions={"torch": "2"},
        )

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        for step in range(1, STEPS + 1):
            tokens = {"python-code": 512 * step, "python-docs": 512 * step}
            yield StepMetrics(step, 0.1, 2.0, 1.0, tokens, {"domain": 2.0, "general": 2.5})
        domain, general = scores_at(
            {"lr_fraction": recipe.lr_fraction, "general_share": recipe.mixture.share("general")}
        )
        yield TrialOutcome(
            status="done",
            items=quickstart_items(domain=domain, general=general),
            tokens_by_source=tokens,
            epochs_by_source={"python-code": 0.1, "python-docs": 0.1},
        )


@dataclass
class DriverUse(NoProgress):
    """What this process, with all of its threads, has used at the end of each trial."""

    cpu_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.finish("")

    def finish(self, task: str) -> None:
        self.cpu_seconds.append(time.process_time())
        self.seconds.append(time.perf_counter())
        self.megabytes.append(resident_megabytes())

    def cpu_milliseconds(self, first: int, last: int) -> float:
        """Return the CPU time per trial from the end of one to the end of another."""
        return 1e3 * (self.cpu_seconds[last] - self.cpu_seconds[first]) / (last - first)


def resident_megabytes() -> float:
    """Return the memory of this process that is not shared with others, in MB."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * resource.getpagesize() / 1e6


def search_instantly(folder: Path, trials: int) -> DriverUse:
    """Run a search of instant trials on two workers, and return what the driver used.

    The last entry is that after the end of the search.
    """
    writer = RunWriter(folder)
    experiment, _ = load_experiment("quickstart", ["choose.max_regression=2.0"])
    writer.start(experiment, RunIdentity())
    run = read_run(folder)
    budget = Budget(trials=trials, tokens=1024 * STEPS, concurrency=2, gpus_per_trial=0)
    tokens = {source.name: 3e6 for source in experiment.sources}
    with ray_cluster(None, budget) as slots:
        use = DriverUse()
        ledger = TrialLedger(
            writer,
            progress=use,
            base=None,
            finished=(),
            space=experiment.space,
            reference=experiment.choose.reference,
            make_recipe=partial(run.experiment.recipe_at, source_tokens=tokens),
            trials=trials,
            seed=experiment.seed,
        )
        run_trials(ledger, InstantRunner, budget=budget, slots=slots)
        use.finish("")
    return use


def growth_with_trials(use: DriverUse) -> list[Growth]:
    """Return how the driver's CPU time per trial and its memory grow with the trials."""
    trials = len(use.seconds) - 2
    sizes = tuple(size for size in SIZES if size <= trials)
    windows = [(max(0, size - min(WINDOW, size // 2)), size) for size in sizes]
    average = tuple(use.cpu_milliseconds(0, size) for size in sizes)
    last = tuple(use.cpu_milliseconds(first, size) for first, size in windows)
    memory = tuple(use.megabytes[size] for size in sizes)
    return [
        Growth("trials", "driver CPU per trial, on average", "ms", sizes, average),
        Growth("trials", "driver CPU per trial, of the last 5 to 100", "ms", sizes, last),
        Growth("trials", "driver memory", "MB", sizes, memory),
    ]


def window_rows(use: DriverUse) -> list[tuple[str, ...]]:
    """Return a row per window: trials, CPU and wall-clock time per trial, memory at its end."""
    trials, rows = len(use.seconds) - 2, []
    for first in range(0, trials, WINDOW):
        last = min(first + WINDOW, trials)
        seconds = (use.seconds[last] - use.seconds[first]) / (last - first)
        cells = (use.cpu_milliseconds(first, last), 1e3 * seconds, use.megabytes[last])
        rows.append((f"{first + 1} to {last}", *(f"{cell:.1f}" for cell in cells)))
    return rows
