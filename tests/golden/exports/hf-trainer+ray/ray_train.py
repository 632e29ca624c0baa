# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: hf-trainer on ray
# sweepcp status: NOT VERIFIED
# sweepcp run: kubectl apply -f /shared/export/rayjob.yaml
import os
import runpy
import socket
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

COMMAND = ["/shared/export/train.py"]
# Exit statuses after which a restart would end in the same way, on all ranks.
FINAL = []


def worker():
    context = get_context()
    os.environ["MASTER_ADDR"] = broadcast_from_rank_zero(socket.gethostbyname(socket.gethostname()))
    os.environ["MASTER_PORT"] = "29500"
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    module = COMMAND[0] == "-m"
    sys.argv = COMMAND[1:] if module else list(COMMAND)
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code in FINAL:
            return end.code
        if end.code:
            raise RuntimeError(f"{sys.argv[0]} exited with status {end.code}") from None
    return 0


if __name__ == "__main__":
    trainer = DataParallelTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=480, use_gpu=True),
        run_config=RunConfig(
            name="e-llama-70b",
            storage_path="/shared/export/ray",
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    sys.exit(trainer.fit().return_value)
