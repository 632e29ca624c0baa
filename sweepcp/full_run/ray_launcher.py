"""A full run whose processes Ray Train starts."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from sweepcp.promote.bundle import LoadedBundle


def run_with_ray(bundle: LoadedBundle, out: Path, address: str | None) -> None:
    """Start the bundle's processes on a Ray cluster and wait for them.

    Args:
        bundle: Like its token stores and its model, on storage that all nodes share.
        out: The folder of the run, on the same storage.
        address: Of the cluster; None for this machine.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if address is None:
        # Despite its name this decides, on every system, whether a local Ray binds to the loopback
        # address or to one that other machines reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    hardware = bundle.bundle.target.hardware
    on_gpu = hardware.device == "cuda"
    ray.init(address=address, include_dashboard=False if address is None else None)
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"bundle": str(bundle.path), "out": str(out)},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=hardware.world_size, use_gpu=on_gpu),
        run_config=RunConfig(name="ray", storage_path=str(out)),
    )
    trainer.fit()


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
    full_run(bundle, Path(config["out"]))
