"""The search itself: Ray Tune runs what is left of the budget, and every trial that ends becomes a file at once.

The files are the one truth. Ray Tune's own state lives in a temporary folder and is never restored: a search that is
continued reads the files and starts a fresh `Tuner` for the numbers that are missing.
"""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from sweepcp.config.budget import Budget
from sweepcp.errors import BaseNotScored, InvalidInput, Stopped
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.worker import TrialRunnerProtocol, TrialWorker


class LedgerSearcher(Searcher):
    """Gives Ray Tune the missing trials, one at a time."""

    def __init__(self, book: "TrialLedger") -> None:
        super().__init__()
        self.book = book

    def suggest(self, trial_id: str) -> Any:
        if self.book.wants_base(trial_id):
            return {"recipe": None}
        draft = self.book.open(trial_id)
        return {"recipe": draft.recipe.model_dump_json()} if draft else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn here: the next proposal reads the book."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folder has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: `Tuner.restore` is not used."""


class LedgerCallback(tune.Callback):
    """Writes down what Ray Tune hears from the workers."""

    def __init__(self, book: "TrialLedger") -> None:
        self.book = book

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self.book.hear(trial.trial_id, result["report"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.book.lose(
            trial.trial_id,
            Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "",
        )


@contextmanager
def ray_cluster(address: str | None, budget: Budget) -> Iterator[int]:
    """A Ray of this machine's own, or the cluster at `address`; yields how many trials run at a time."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # failed trials are shown and recorded by the book
    started = not ray.is_initialized()
    if started:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        local: dict[str, Any] = {"include_dashboard": False, "num_cpus": os.cpu_count()}
        try:
            ray.init(address=address or "local", **quiet, **({} if address else local))
        except (ConnectionError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise InvalidInput(
                file="--address",
                key="--address",
                found=address,
                rule=f"a Ray cluster that answers ({first})",
                fix="check it",
            ) from None
    try:
        yield _concurrent_trials(budget, ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _concurrent_trials(budget: Budget, resources: dict[str, float]) -> int:
    need = {"CPU": budget.cpus_per_trial, "GPU": budget.gpus_per_trial}
    for name, amount in need.items():
        if amount > resources.get(name, 0):
            key = f"budget.{name.lower()}s_per_trial"
            has = f"{resources.get(name, 0):g}"
            raise InvalidInput(
                file="the machine or cluster",
                key=key,
                found=amount,
                rule=f"at most the {has} {name}s there are",
                fix=f"lower {key}",
            )
    room = min(int(resources[name] // amount) for name, amount in need.items() if amount)
    return min(room, budget.concurrency or room)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`: what is finished stays, the same command goes on from there.

    To be entered after Ray has started, which installs a handler of its own.
    """

    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt  # the one that Ray's own calls let through

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if came:  # whatever Ray made of it
            raise Stopped(came[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_trials(
    book: TrialLedger,
    make_bench: Callable[[], TrialRunnerProtocol],
    budget: Budget,
    concurrency: int,
) -> None:
    """Run the trials that are missing; the book writes each as it ends.

    Raises `BaseNotScored` when there is nothing to compare them with.
    """
    if not book.to_come:
        return
    state = tempfile.mkdtemp(prefix="sweepcp-tune-")
    resources = {"cpu": float(budget.cpus_per_trial), "gpu": float(budget.gpus_per_trial)}
    trainable = tune.with_resources(
        tune.with_parameters(TrialWorker, make_bench=make_bench), resources
    )
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(book),
                num_samples=len(book.to_come) + (book.base is None),
                max_concurrent_trials=concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=state,
                verbose=0,
                callbacks=[LedgerCallback(book)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if book.base_error is not None:
        raise BaseNotScored(book.base_error)
    if book.running or book.to_come:
        missing = [draft.id for draft in book.running.values()] + [f"{n:04d}" for n in book.to_come]
        raise RuntimeError(
            f"Ray Tune ended without trials {', '.join(missing)}; the same command goes on with them"
        )
