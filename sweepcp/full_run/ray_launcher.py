"""A full run whose processes Ray Train starts."""

import os
from pathlib import Path
from typing import Any

from sweepcp.promote.bundle import LoadedBundle


def run_with_ray(opened: LoadedBundle, out: Path, address: str | None) -> None:
    """Start the bundle's processes on a Ray cluster, or on this machine, and wait for them.

    Bundle, stores, model and `out` must be on storage that all nodes see.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
            "0"  # Ray's name for: bind to the loopback address
        )
    hardware = opened.bundle.target.hardware
    on_gpu = hardware.device == "cuda"
    ray.init(address=address, include_dashboard=False if address is None else None)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"bundle": str(opened.path), "out": str(out)},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=hardware.world_size, use_gpu=on_gpu),
        run_config=RunConfig(name="ray", storage_path=str(out)),
    )
    trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    from sweepcp.full_run.preflight import check_ready
    from sweepcp.full_run.run import full_run
    from sweepcp.promote.bundle import load_bundle

    opened = load_bundle(Path(config["bundle"]))
    check_ready(opened.path, opened.bundle)  # on every node, as the other launchers do
    full_run(opened, Path(config["out"]), lambda text: print(text, flush=True))
