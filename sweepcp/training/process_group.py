"""The processes of a distributed run: who this one is, and what they agree on."""

import os
import socket
import subprocess
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProcessGroup:
    """One process among `ranks`. By default the only one, which needs no process group."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what all share."""
        return self.rank == 0

    def total(self, local: np.ndarray) -> np.ndarray:
        """The sum over all ranks of an array of float64, any shape, equal on every rank."""
        if self.ranks == 1:
            return local
        tensor = torch.as_tensor(local, dtype=torch.float64, device=self.device).clone()
        dist.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, equal on every rank."""
        return bool(self.total(np.array([flag], dtype=np.float64))[0])

    def wait(self) -> None:
        """Wait for all ranks."""
        self.total(np.zeros(1))


def set_rendezvous_environment() -> None:
    """Fill in what torch.distributed reads from the environment, where the launcher did not: srun, or no launcher.

    torchrun, the deepspeed launcher and Ray Train set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    Under srun they follow from Slurm's variables; a process that was started by hand is a world of one.
    """
    env = os.environ
    if "RANK" in env:
        return
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_NTASKS"]
        env["LOCAL_RANK"] = env["SLURM_LOCALID"]
        if "MASTER_ADDR" not in env:
            command = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
            env["MASTER_ADDR"] = subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.split()[0]
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
