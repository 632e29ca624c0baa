"""The Ray Tune actor that runs trials."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray import tune

from sweepcp.config.recipe import Recipe
from sweepcp.errors import BaseNotScored, Diverged, InvalidInput
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.search.worker_io import TrialRunnerProtocol, WorkerReport, WorkerSpec
from sweepcp.util.gpus import hide_gpus

if TYPE_CHECKING:  # imports torch, from which GPUs may have to be hidden
    from sweepcp.search.trial_runner import TrialRunner
    from sweepcp.training.loop import StepMetrics

REPORT_SECONDS = 1.0
"""How often a running trial reports its steps to the driver."""


class TrialWorker(tune.Trainable):
    """Ray Tune actor that keeps the base model loaded between trials.

    Its configuration is `{"recipe": JSON, "micro_batch": number or None}`, or `{"recipe": None}` to
    score the base.
    """

    def setup(  # type: ignore[override]  # Ray Tune passes what `with_parameters` was given
        self, config: dict[str, Any], make_runner: Callable[[], TrialRunnerProtocol]
    ) -> None:
        """Receive the first recipe. The runner is built in the first step, where errors count."""
        # Tokenizers would start a thread per core of the machine, beside those of other workers.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.make_runner = make_runner
        self.runner: TrialRunnerProtocol | None = None
        self._set_recipe(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Receive the next recipe in the same process."""
        self._set_recipe(new_config)
        return True

    def _set_recipe(self, config: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate_json(config["recipe"]) if config["recipe"] else None
        self.micro_batch: int | None = config.get("micro_batch")
        self.events: Iterator[StepMetrics | TrialOutcome | BaseRecord] | None = None

    def step(self) -> dict[str, Any]:
        """Advance the trial by about a second.

        What no trial can do without is reported to the driver, which ends the search: so is a disk
        that is full, or a folder of the cache that is gone. Any other exception ends this process:
        the trial is recorded as failed, and the next one starts in a new process, because a device
        that ran out of memory may be in any state.
        """
        try:
            report = self._advance()
        except (BaseNotScored, InvalidInput, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise
            report = WorkerReport([], None, error)
        done = report.outcome is not None or report.error is not None
        return {"report": report, "done": done}

    def _advance(self) -> WorkerReport:
        metrics: list[StepMetrics] = []
        outcome: TrialOutcome | BaseRecord | None = None
        if self.events is None:
            self.runner = self.runner or self.make_runner()
            self.events = self._start(self.runner)
            # Before anything is spent on scores that may not compare with those of the run.
            return WorkerReport([], None, environment=self.runner.environment)
        deadline = time.monotonic() + REPORT_SECONDS
        for event in self.events:
            if isinstance(event, TrialOutcome | BaseRecord):
                outcome = event
                break
            metrics.append(event)
            if time.monotonic() > deadline:
                break
        return WorkerReport(metrics, outcome)

    def _start(
        self, runner: TrialRunnerProtocol
    ) -> "Iterator[StepMetrics | TrialOutcome | BaseRecord]":
        if self.recipe is None:
            try:
                yield runner.score_base()
            except Diverged as error:
                raise BaseNotScored(str(error)) from None
        else:
            yield from runner.run(self.recipe, micro_batch=self.micro_batch)


def make_trial_runner(spec: WorkerSpec, concurrent_trials: int) -> "TrialRunner":
    """Build a worker's runner. Runs in the worker, which imports torch; the driver need not."""
    if spec.device == "cpu":
        hide_gpus()
    from sweepcp.search.trial_runner import TrialRunner

    return TrialRunner(spec, concurrent_trials=concurrent_trials)
