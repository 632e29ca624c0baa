"""Run the missing trials of a search with Ray Tune.

The run folder is the only truth. Ray Tune's own state lives in a temporary folder and is never
restored: a resumed search reads the run folder and starts a fresh `Tuner` for the missing numbers.
"""

import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.error import TuneError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from sweepcp.config.budget import Budget
from sweepcp.errors import WorkLost
from sweepcp.search.devices import TrialSlots
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.worker import TrialWorker
from sweepcp.search.worker_io import TrialRunnerProtocol
from sweepcp.util.temporary import temporary_folder

KEPT_RESULT = {"trial_id", "done"}
"""What Ray Tune needs of a worker's result once it is recorded."""


class LedgerSearcher(Searcher):
    """Hands Ray Tune the missing trials of a ledger, one at a time."""

    def __init__(self, ledger: TrialLedger) -> None:
        super().__init__()
        self.ledger = ledger

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next worker: the base first, then trials.

        None if there is nothing to start now, but there may be later.
        """
        with _ends_search(self.ledger):
            if self.ledger.claim_base(trial_id):
                return {"recipe": None}
            if trial := self.ledger.start_trial(trial_id):
                recipe = trial.recipe.model_dump_json()
                return {"recipe": recipe, "micro_batch": trial.micro_batch}
        return None if self.ledger.is_waiting else Searcher.FINISHED

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  # Ray's signature
    ) -> None:
        """Do nothing: the next proposal reads the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: `Tuner.restore` is never used."""


class LedgerCallback(TrialProgressCallback):
    """Records in the ledger what Ray Tune receives from the workers.

    It takes the place of Ray Tune's own callback, which prints a line for a trial that is stopped,
    also where nothing is to be printed.
    """

    def __init__(self, ledger: TrialLedger) -> None:
        super().__init__()
        self.ledger = ledger

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Record a worker's report."""
        with _ends_search(self.ledger):
            report = result["report"]
            # Ray Tune keeps the last result of every trial, and statistics of all its numbers.
            for name in result.keys() - KEPT_RESULT:
                del result[name]
            self.ledger.record_report(trial.trial_id, report)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Record that a worker raised or was lost."""
        with _ends_search(self.ledger):
            error_file = trial.error_file
            error = Path(error_file).read_text(encoding="utf-8") if error_file else ""
            self.ledger.record_failure(trial.trial_id, error, lost=_is_lost(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Do nothing: the last result of a trial was recorded."""


def _is_lost(trial: Any) -> bool:
    """Return whether the worker of a trial was lost, and did not raise an exception."""
    file = trial.pickled_error_file
    error = pickle.loads(Path(file).read_bytes()) if file else None
    return not isinstance(error, RayTaskError)


@contextmanager
def _ends_search(ledger: TrialLedger) -> Iterator[None]:
    """End the search with any error of the ledger, such as that of a full disk.

    Ray Tune would turn it into an error of its own that holds the traceback as text.
    """
    try:
        yield
    except Exception as error:  # raised by `run_trials`
        ledger.end_search(error)


class StopOnError(tune.Stopper):
    """Stops all workers once the ledger has an error that no trial can do without."""

    def __init__(self, ledger: TrialLedger) -> None:
        self.ledger = ledger

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: a trial ends when its worker reports its outcome."""
        return False

    def stop_all(self) -> bool:
        """Return whether the search ends now."""
        return self.ledger.error is not None


def run_trials(
    ledger: TrialLedger,
    make_runner: Callable[[], TrialRunnerProtocol],
    *,
    budget: Budget,
    slots: TrialSlots,
) -> None:
    """Run the missing trials of a ledger, which records each as it ends.

    Args:
        ledger: The trials of the run.
        make_runner: Builds the runner of a worker, in the worker's process.
        budget: CPUs per trial.
        slots: The share of a GPU per trial, and trials at a time.

    Raises:
        BaseNotScored: The base could not be scored, so trials have no reference.
        InvalidInput: A worker met input that no trial can use.
        WorkLost: Ray Tune ends while trials are missing.
        OSError: The run folder cannot be written.
    """
    if not ledger.to_come:
        return
    try:
        with temporary_folder(Path(tempfile.gettempdir()), "sweepcp-tune") as state_folder:
            _make_tuner(ledger, make_runner, budget, slots, state_folder).fit()
    except (RayError, TuneError) as error:
        if ledger.error is None:
            reason = str(error).strip().splitlines()[-1]
            raise WorkLost(f"Ray ended the search: {reason}") from error
    if ledger.error is not None:
        raise ledger.error
    if ledger.running or ledger.to_come:
        missing = [trial.id for trial in ledger.running.values()]
        missing += [f"{number:04d}" for number in ledger.to_come]
        raise WorkLost(f"Ray Tune ended without trials {', '.join(missing)}")


def _make_tuner(
    ledger: TrialLedger,
    make_runner: Callable[[], TrialRunnerProtocol],
    budget: Budget,
    slots: TrialSlots,
    state_folder: Path,
) -> tune.Tuner:
    resources = {"cpu": float(budget.cpus_per_trial), "gpu": slots.gpu_share}
    trainable = tune.with_parameters(TrialWorker, make_runner=make_runner)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger),
            num_samples=-1,  # until the searcher says that it has finished
            max_concurrent_trials=slots.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(state_folder),
            verbose=0,
            stop=StopOnError(ledger),
            callbacks=[LedgerCallback(ledger)],
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
