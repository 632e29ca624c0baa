"""What the launcher of a run states in the environment: torchrun, deepspeed, Ray Train or srun."""

import os
import socket
import subprocess
from dataclasses import dataclass

from sweepcp.errors import InvalidInput
from sweepcp.util.environment import environment_integer

START = "start the run with torchrun, deepspeed or srun"


@dataclass(frozen=True, kw_only=True)
class LaunchedProcess:
    """The place of this process in its run."""

    rank: int
    world_size: int
    local_rank: int
    """Its number among the processes of the node."""
    owns_gpus: bool
    """Whether Slurm started it as a task: the GPUs that are visible may be those of one task."""

    def gpu_index(self, visible: int) -> int | None:
        """Return the index of this process's GPU among those that are visible; None without one.

        Slurm can bind each task to a GPU of its own (`--gpus-per-task`, `--gpu-bind`). It is then
        the only visible one, for any number of the process.
        """
        if self.local_rank < visible:
            return self.local_rank
        return 0 if visible == 1 and self.owns_gpus else None


def launched_process() -> LaunchedProcess:
    """Return the place of this process as its launcher states it; the only one without a launcher.

    Raises:
        InvalidInput: The launcher's variables are incomplete or contradict each other.
    """
    env = os.environ
    if "RANK" in env:
        world_size = environment_integer("WORLD_SIZE", low=1, fix=START)
        local_rank = _local_rank(world_size)
        is_task = env.get("SLURM_LOCALID") == str(local_rank)
        return LaunchedProcess(
            rank=environment_integer("RANK", low=0, high=world_size - 1, fix=START),
            world_size=world_size,
            local_rank=local_rank,
            owns_gpus=is_task and "TORCHELASTIC_RUN_ID" not in env,
        )
    tasks = _slurm_tasks()
    if tasks == 1:
        return LaunchedProcess(rank=0, world_size=1, local_rank=0, owns_gpus=False)
    return LaunchedProcess(
        rank=environment_integer("SLURM_PROCID", low=0, high=tasks - 1, fix=START),
        world_size=tasks,
        local_rank=environment_integer("SLURM_LOCALID", low=0, fix=START),
        owns_gpus=True,
    )


def _local_rank(world_size: int) -> int:
    """Return LOCAL_RANK, which some launchers do not set."""
    default = 0 if world_size == 1 else None
    if "SLURM_LOCALID" in os.environ and "LOCAL_RANK" not in os.environ and world_size > 1:
        return environment_integer("SLURM_LOCALID", low=0, fix=START)
    fix = "set LOCAL_RANK to the process's number on its node (0 if it is the only one there)"
    return environment_integer("LOCAL_RANK", default, low=0, fix=fix)


def _slurm_tasks() -> int:
    """Return the number of processes that srun started with this one; 1 outside of Slurm.

    In the shell of `salloc` and in a batch script, SLURM_NTASKS is that of the allocation. The
    step of an interactive shell has one task.
    """
    if "SLURM_PROCID" not in os.environ:
        return 1
    allocated = environment_integer("SLURM_NTASKS", 1, low=1)
    tasks = environment_integer("SLURM_STEP_NUM_TASKS", allocated, low=1)
    if tasks > 1 and "SLURM_STEP_NODELIST" not in os.environ:
        raise InvalidInput(
            file="the environment",
            key="SLURM_STEP_NODELIST",
            found=None,
            rule=f"a process that srun started; SLURM_NTASKS is {tasks}, and this is none of "
            "the tasks",
            fix="put srun or torchrun before the command; for a run of one process, set RANK=0 and "
            "WORLD_SIZE=1",
        )
    return tasks


def set_rendezvous_environment() -> LaunchedProcess:
    """Set the environment variables of `torch.distributed` where the launcher has not.

    torchrun, the deepspeed launcher and Ray Train set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT. Under srun they follow from Slurm's variables. A process that was started by
    hand becomes a run of one process.

    Raises:
        InvalidInput: See `launched_process`; or the first process has no address.
    """
    env = os.environ
    process = launched_process()
    started_by_srun = "RANK" not in env and process.world_size > 1
    if not env.get("MASTER_ADDR"):
        env["MASTER_ADDR"] = _first_host(process, started_by_srun=started_by_srun)
    if not env.get("MASTER_PORT"):
        env["MASTER_PORT"] = str(_rendezvous_port(process, started_by_srun=started_by_srun))
    environment_integer("MASTER_PORT", low=1, high=65535, fix=START)
    env |= {
        "RANK": str(process.rank),
        "WORLD_SIZE": str(process.world_size),
        "LOCAL_RANK": str(process.local_rank),
    }
    return process


def _first_host(process: LaunchedProcess, *, started_by_srun: bool) -> str:
    if process.world_size == 1:
        return "127.0.0.1"
    missing = InvalidInput(
        file="the environment",
        key="MASTER_ADDR",
        found=None,
        rule="the name or address of the node of rank 0",
        fix=f"set it on every node, or {START}",
    )
    if not started_by_srun:
        raise missing
    nodes = os.environ["SLURM_STEP_NODELIST"]
    if not set(nodes) & set("[,"):
        return nodes
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        # In a container there is often no `scontrol`.
        raise missing from None


def _rendezvous_port(process: LaunchedProcess, *, started_by_srun: bool) -> int:
    if process.world_size == 1:
        return _free_port()
    if started_by_srun:
        # Every task derives the same port from the job, and two jobs on a node rarely share one.
        return 20000 + environment_integer("SLURM_JOB_ID", low=0, fix=START) % 20000
    return environment_integer("MASTER_PORT", low=1, high=65535, fix=f"set it, or {START}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
