"""A full run whose processes Ray Train starts."""

import logging
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from sweepcp.errors import Alarmed, Diverged, InvalidInput, Stopped
from sweepcp.full_run.ending import SIGNALS
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.scoring.scorecard import Scorecard
from sweepcp.util.files import write_text
from sweepcp.util.parallel import usable_cores
from sweepcp.util.records import read_record


def run_with_ray(bundle: LoadedBundle, out: Path, address: str | None) -> Scorecard:
    """Start the bundle's processes on a Ray cluster and wait for them.

    Args:
        bundle: Like its token stores and its model, on storage that all nodes share.
        out: The folder of the run, on the same storage.
        address: Of the cluster; None for this machine.

    Returns:
        The trained model against step 0.

    Raises:
        InvalidInput, Diverged, Alarmed, Stopped: What `full_run` raised in the processes.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    if address is None:
        # Despite its name this decides, on every system, whether a local Ray binds to the loopback
        # address or to one that other machines reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    hardware = bundle.bundle.target.hardware
    on_gpu = hardware.device == "cuda"
    if address is None:
        cores = _check_cores(bundle)
        ray.init(address="local", include_dashboard=False, num_cpus=cores)
    else:
        ray.init(address=address)
    # A name of its own, so that no later start finds it.
    stop_file = out / f"stop-{uuid4().hex}"
    _forward_signals(stop_file)
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"bundle": str(bundle.path), "out": str(out), "stop": str(stop_file)},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=hardware.world_size, use_gpu=on_gpu),
        run_config=RunConfig(name="ray", storage_path=str(out)),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise ending_error(error.worker_failures.values()) from error
    finally:
        stop_file.unlink(missing_ok=True)
    return read_record(Scorecard, out / "scorecard.json", fix="start the run again")


def _check_cores(bundle: LoadedBundle) -> int:
    """Return the usable cores of this machine, of which Ray gives each process one."""
    cores, processes = usable_cores(), bundle.bundle.target.hardware.world_size
    if processes > cores:
        raise InvalidInput(
            file=bundle.path / "bundle.json",
            key="target.hardware",
            found=f"{processes} processes",
            rule=f"at most the {cores} CPUs that this process may use; Ray would wait for more",
            fix="start it with torchrun, whose processes may share CPUs, or pass --address",
        )
    return cores


def ending_error(failures: Iterable[BaseException]) -> BaseException:
    """Return the exception of a failed run's processes that says how the run ended.

    The others may have failed only because one of them had.
    """
    failures = list(failures)
    for failure in failures:
        if isinstance(failure, InvalidInput | Diverged | Alarmed | Stopped):
            return failure
    return failures[0]


def _forward_signals(stop_file: Path) -> None:
    """Let SIGTERM and SIGUSR2 to this process stop the run.

    Ray runs the training in a thread of its processes on other nodes, which no signal reaches.
    """

    def request_stop(number: int, _frame: FrameType | None) -> None:
        write_text(stop_file, str(number))

    for number in SIGNALS:
        signal.signal(number, request_stop)


def _run_worker(config: dict[str, Any]) -> None:
    from sweepcp.full_run.preflight import check_ready
    from sweepcp.full_run.run import full_run
    from sweepcp.promote.bundle import load_bundle

    # Ray sends what a worker prints to the terminal of the process that the user started.
    logger = logging.getLogger("sweepcp")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    # Ray's handler of the root logger would send every message again, on standard error.
    logger.propagate = False
    bundle = load_bundle(Path(config["bundle"]))
    # Other launchers run the command on each node, where it makes this check.
    check_ready(bundle)
    full_run(bundle, Path(config["out"]), stop_file=Path(config["stop"]))
