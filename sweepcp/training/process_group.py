"""The processes of a distributed run: the rank of this one, and collectives over all of them."""

import os
import socket
import subprocess
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes of a run, as one of them sees it.

    By default a run of one process, which needs no initialised `torch.distributed`.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    """Where this process computes, and where the tensors of its collectives are placed."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files that all ranks share."""
        return self.rank == 0

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of a float64 array of any shape over all ranks, equal on every rank."""
        if self.world_size == 1:
            return array
        # `as_tensor` may share memory with the array, which `all_reduce` would overwrite.
        tensor = torch.as_tensor(array, dtype=torch.float64, device=self.device).clone()
        dist.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def all_reduce_any(self, flag: bool) -> bool:  # noqa: FBT001 - the flag is the operand, as in `any`
        """Return whether the flag is set on any rank, equal on every rank."""
        return bool(self.all_reduce_sum(np.array([flag], dtype=np.float64))[0])

    def barrier(self) -> None:
        """Block until every rank gets here."""
        # An all-reduce rather than `dist.barrier`: that one has to guess a device under NCCL.
        self.all_reduce_sum(np.zeros(1))


def set_rendezvous_environment() -> None:
    """Set the environment variables of `torch.distributed` where the launcher has not.

    torchrun, the deepspeed launcher and Ray Train set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT. Under srun they follow from Slurm's variables. A process that was started by
    hand becomes a run of one process.
    """
    env = os.environ
    if "RANK" in env:
        return
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        _set_from_slurm()
        return
    env |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }


def _set_from_slurm() -> None:
    env = os.environ
    env["RANK"] = env["SLURM_PROCID"]
    env["WORLD_SIZE"] = env["SLURM_NTASKS"]
    env["LOCAL_RANK"] = env["SLURM_LOCALID"]
    if "MASTER_ADDR" not in env:
        command = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        env["MASTER_ADDR"] = listed.stdout.split()[0]
    # Every task derives the same port from the job, and two jobs on a node rarely share one.
    env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
