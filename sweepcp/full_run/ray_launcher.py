"""A full run whose processes Ray Train starts."""

import logging
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
from sweepcp.util.parallel import ray_connection, usable_cores
from sweepcp.util.records import read_record
from sweepcp.util.streams import make_streams_printable


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
    if address is None:
        _check_cores(bundle)
    # The first worker prints the log of the run.
    with ray_connection(address, log_to_driver=True, logging_level=logging.INFO):
        _run_workers(bundle, out)
    return read_record(Scorecard, out / "scorecard.json", fix="start the run again")


def _run_workers(bundle: LoadedBundle, out: Path) -> None:
    # Ray reads its environment when it is imported, and `ray_connection` sets that.
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    hardware = bundle.bundle.target.hardware
    on_gpu = hardware.device == "cuda"
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


def _check_cores(bundle: LoadedBundle) -> None:
    """Refuse more processes than this machine has usable cores: Ray gives each process one."""
    cores, processes = usable_cores(), bundle.bundle.target.hardware.world_size
    if processes > cores:
        raise InvalidInput(
            file=bundle.path / "bundle.json",
            key="target.hardware",
            found=f"{processes} processes",
            rule=f"at most the {cores} CPUs that this process may use; Ray would wait for more",
            fix="start it with torchrun, whose processes may share CPUs, or pass --address",
        )


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
    make_streams_printable()
    logger = logging.getLogger("sweepcp")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    # Ray's handler of the root logger would send every message again, on standard error.
    logger.propagate = False
    bundle = load_bundle(Path(config["bundle"]))
    # Other launchers run the command on each node, where it makes this check.
    check_ready(bundle)
    full_run(bundle, Path(config["out"]), stop_file=Path(config["stop"]))
