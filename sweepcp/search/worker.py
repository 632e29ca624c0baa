"""The Ray Tune actor that runs trials."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from ray import tune

from sweepcp.config.recipe import Recipe
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.search.worker_io import TrialRunnerProtocol, WorkerReport
from sweepcp.training.loop import StepMetrics

REPORT_SECONDS = 1.0
"""How often a running trial reports its steps to the driver."""


class TrialWorker(tune.Trainable):
    """Ray Tune actor that keeps the base model loaded between trials.

    Its configuration is `{"recipe": JSON}`, or `{"recipe": None}` to score the base.
    """

    def setup(  # type: ignore[override]  # Ray Tune passes what `with_parameters` was given
        self, config: dict[str, Any], make_runner: Callable[[], TrialRunnerProtocol]
    ) -> None:
        """Receive the first recipe. The runner is built in the first step, where errors count."""
        self.make_runner = make_runner
        self.runner: TrialRunnerProtocol | None = None
        self._set_recipe(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Receive the next recipe in the same process."""
        self._set_recipe(new_config)
        return True

    def _set_recipe(self, config: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate_json(config["recipe"]) if config["recipe"] else None
        self.events: Iterator[StepMetrics | TrialOutcome | BaseRecord] | None = None

    def step(self) -> dict[str, Any]:
        """Advance the trial by about a second.

        An exception ends this process: the trial is recorded as failed, and the next one starts in
        a new process, because a device that ran out of memory may be in any state.
        """
        metrics: list[StepMetrics] = []
        outcome: TrialOutcome | BaseRecord | None = None
        if self.events is None:
            self.events = self._start()
        deadline = time.monotonic() + REPORT_SECONDS
        for event in self.events:
            if isinstance(event, TrialOutcome | BaseRecord):
                outcome = event
                break
            metrics.append(event)
            if time.monotonic() > deadline:
                break
        return {"report": WorkerReport(metrics, outcome), "done": outcome is not None}

    def _start(self) -> Iterator[StepMetrics | TrialOutcome | BaseRecord]:
        self.runner = self.runner or self.make_runner()
        if self.recipe is None:
            return iter([self.runner.score_base()])
        return self.runner.run(self.recipe)
