"""TODO search.worker."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ray import tune

from sweepcp.config.recipe import Recipe
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.search.ledger import WorkerReport
from sweepcp.training.loop import StepMetrics

REPORT_SECONDS = 1.0
"""How often a running trial tells the driver of its steps."""


class TrialRunnerProtocol(Protocol):
    """What a worker holds: see `sweepcp.bench.Bench`."""

    def base(self) -> BaseRecord: ...

    def run(self, recipe: Recipe) -> Iterator[StepMetrics | TrialOutcome]: ...


class TrialWorker(tune.Trainable):
    """A warm actor: the bench stays, the recipes come and go."""

    def setup(  # type: ignore[override]  # Ray Tune passes what `with_parameters` was given
        self, config: dict[str, Any], make_bench: Callable[[], TrialRunnerProtocol]
    ) -> None:
        self.make_bench = make_bench
        self.bench: TrialRunnerProtocol | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next recipe in the same process."""
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate_json(config["recipe"]) if config["recipe"] else None
        self.events: Iterator[StepMetrics | TrialOutcome | BaseRecord] | None = None

    def step(self) -> dict[str, Any]:
        """Advance the trial by about a second.

        What a bench raises ends this process: the trial is recorded as failed, and the next one starts in a new process
        (a device that ran out of memory may be in any state).
        """
        rows: list[StepMetrics] = []
        outcome: TrialOutcome | BaseRecord | None = None
        self.bench = self.bench or self.make_bench()
        if self.events is None:
            self.events = self.bench.run(self.recipe) if self.recipe else iter([self.bench.base()])
        until = time.monotonic() + REPORT_SECONDS
        for event in self.events:
            if isinstance(event, TrialOutcome | BaseRecord):
                outcome = event
                break
            rows.append(event)
            if time.monotonic() > until:
                break
        return {"report": WorkerReport(rows, outcome), "done": outcome is not None}
