"""The steps of a worker, in this process."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sweepcp.config.recipe import Recipe
from sweepcp.errors import BaseNotScored, Diverged, InvalidInput
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.search.worker import TrialWorker
from sweepcp.search.worker_io import WorkerReport
from sweepcp.training.loop import StepMetrics
from tests.make import recipe

INVALID = InvalidInput(
    file="quiz.jsonl", key="item 3", found=-1, rule="an index of a choice", fix="correct it"
)


@dataclass
class FailingRunner:
    """Raises when it scores the base or begins to train."""

    error: Exception

    @property
    def environment(self) -> dict[str, str]:
        return {}

    def score_base(self) -> BaseRecord:
        raise self.error

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        yield StepMetrics(1, 0.1, 2.0, 1.0, {"code": 8}, {"domain": 2.0})
        raise self.error


def refuse_to_build() -> FailingRunner:
    raise INVALID


def make_worker(config: dict[str, Any], make_runner: Callable[[], FailingRunner]) -> TrialWorker:
    """Make a worker as Ray Tune does, without its logs."""
    worker = object.__new__(TrialWorker)
    worker.setup(config, make_runner)
    return worker


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")


def last_report(worker: TrialWorker) -> WorkerReport:
    """Return the report of the step that ends a worker's trial, of three steps at most."""
    for _ in range(3):
        step = worker.step()
        if step["done"]:
            break
    assert step["done"]
    report = step["report"]
    assert isinstance(report, WorkerReport)
    return report


@pytest.mark.parametrize("content", [None, recipe().model_dump_json()])
def test_invalid_input_is_reported_as_it_was_raised(content: str | None):
    worker = make_worker({"recipe": content}, refuse_to_build)
    assert last_report(worker) == WorkerReport([], None, INVALID)
    worker = make_worker({"recipe": content}, lambda: FailingRunner(INVALID))
    assert last_report(worker).error is INVALID


def test_a_base_that_diverges_is_reported_and_not_a_traceback():
    error = Diverged("the loss on a held-out document is not finite")
    worker = make_worker({"recipe": None}, lambda: FailingRunner(error))
    reported = last_report(worker).error
    assert isinstance(reported, BaseNotScored)
    assert str(reported) == str(error)


def test_what_the_system_refuses_ends_the_search_but_for_memory():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "store.bin")
    worker = make_worker({"recipe": recipe().model_dump_json()}, lambda: FailingRunner(full))
    assert last_report(worker).error is full
    memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    worker = make_worker({"recipe": recipe().model_dump_json()}, lambda: FailingRunner(memory))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        last_report(worker)


def test_any_other_error_ends_the_worker():
    worker = make_worker({"recipe": None}, lambda: FailingRunner(RuntimeError("lost")))
    with pytest.raises(RuntimeError, match="lost"):
        last_report(worker)
