"""Run the missing trials of a search with Ray Tune.

The run folder is the only truth. Ray Tune's own state lives in a temporary folder and is never
restored: a resumed search reads the run folder and starts a fresh `Tuner` for the missing numbers.
"""

import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.error import TuneError
from ray.tune.search import Searcher

from sweepcp.config.budget import Budget
from sweepcp.errors import WorkLost
from sweepcp.search.devices import Node, TrialSlots, trial_slots
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.worker import TrialWorker
from sweepcp.search.worker_io import TrialRunnerProtocol
from sweepcp.util.gpus import Gpu, visible_gpus
from sweepcp.util.parallel import ray_connection, task_result
from sweepcp.util.temporary import temporary_folder

T = TypeVar("T")
KEPT_RESULT = {"trial_id", "done"}
"""What Ray Tune needs of a worker's result once it is recorded."""
GPU_TYPE = "accelerator_type:"
"""Ray has a resource of this name and the type of the GPU on each node with GPUs."""


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


class LedgerCallback(tune.Callback):
    """Records in the ledger what Ray Tune receives from the workers."""

    def __init__(self, ledger: TrialLedger) -> None:
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


@contextmanager
def ray_cluster(
    address: str | None, budget: Budget, *, python: str | None = None
) -> Iterator[TrialSlots]:
    """Start Ray on this machine, or connect to the cluster at `address`.

    Args:
        address: Of the cluster.
        budget: What a trial needs.
        python: A command that starts the processes of workers, instead of this interpreter.

    Yields:
        What each trial computes on, and how many run at a time.

    Raises:
        InvalidInput: No cluster answers, or a trial needs more than its nodes have.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Snapshots of all trials, for a `Tuner.restore` that is never used.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # Task files may name data relative to the folder that the command was started in.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # The ledger records and reports failed trials; Ray Tune would print them a second time.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    gpus = visible_gpus() if address is None else ()
    options: dict[str, Any] = {"num_gpus": len(gpus)} if address is None else {}
    if python is not None:
        options["runtime_env"] = {"py_executable": python}
        # Ray would start idle workers with the interpreter itself, which nothing would use.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with ray_connection(address, **options):
        yield trial_slots(budget, [_node(node, gpus) for node in ray.nodes() if node["Alive"]])


def _node(node: dict[str, Any], gpus: Sequence[Gpu]) -> Node:
    """Return the resources of a node of Ray; `gpus` are those of this machine, if it is the node.

    Of a cluster's GPUs, Ray knows no more than their number and the type.
    """
    resources: dict[str, float] = node["Resources"]
    count = int(resources.get("GPU", 0))
    if len(gpus) != count:
        types = [name for name in resources if name.startswith(GPU_TYPE)]
        name = types[0].removeprefix(GPU_TYPE) if types else "GPU"
        gpus = [Gpu(name, memory_gib=None, capability=None)] * count
    return Node(resources.get("CPU", 0.0), tuple(gpus))


def run_in_task(
    work: Callable[[], Iterator[T]], *, cpus: int, gpus: int, ends_process: bool = True
) -> Iterator[T]:
    """Yield what `work` yields in a process of its own, for which Ray reserves CPUs and GPUs.

    Args:
        work: Runs in the process.
        cpus: CPUs to reserve.
        gpus: GPUs to reserve; if there are any, the process sees no others.
        ends_process: Whether the process ends with the work, so that its GPU memory is free for the
            next one. If not, the next work with the same needs may run in it.

    Raises:
        WorkLost: The process was killed, or its node was lost.
    """
    # Ray would start by itself, in its own way.
    assert ray.is_initialized()

    # It sends a function of a module by its name: the process would import this module.
    def yield_items() -> Iterator[T]:
        yield from work()

    task: Any = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_calls=1 if ends_process else 0,
        max_retries=0,
        num_returns="streaming",
    )(yield_items)
    for item in task.remote():
        yield task_result(item)


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
