"""What trials compute on: CPUs, a GPU each, or shares of a GPU; and how many fit at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sweepcp.config.attention import check_attention, expected_attention
from sweepcp.config.budget import RESOURCE_UNITS, Budget
from sweepcp.config.experiment import Experiment, TrainingSection
from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import base_dimensions, count_parameters
from sweepcp.models.memory import (
    CONTEXT_BYTES,
    STATE_BYTES,
    TrainingMemory,
    training_memory,
)
from sweepcp.util.gpus import Device, Gpu, visible_gpus
from sweepcp.util.memory import GIB

KEY = "budget.gpus_per_trial"


@dataclass(frozen=True)
class Node:
    """The resources of a machine that Ray knows."""

    cpus: float
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class TrialSlots:
    """What each trial computes on, and how many run at a time."""

    gpu_share: float
    """The share of a GPU; 0 for CPUs."""
    concurrency: int
    """Trials at a time."""
    gpus: tuple[Gpu, ...] = ()
    """Those of the machine or cluster."""

    @property
    def device(self) -> Device:
        """The device of a trial."""
        return device_of(self.gpu_share)


def resolve_devices(budget: Budget, gpus: Sequence[Gpu]) -> float:
    """Return the share of a GPU that a trial gets, 0 for CPUs.

    Args:
        budget: Its `auto` means a whole GPU if there is one.
        gpus: Those of this machine or of the cluster.
    """
    if budget.gpus_per_trial == "auto":
        return 1.0 if gpus else 0.0
    return budget.gpus_per_trial


def device_of(gpu_share: float) -> Device:
    """Return the device of a trial that gets a share of a GPU."""
    return "cuda" if gpu_share else "cpu"


def local_device(budget: Budget) -> Device:
    """Return the device of a command on this machine that runs no trials.

    That of trials, if it is here: corpora are also checked where a search would not run.
    """
    gpus = visible_gpus()
    return device_of(resolve_devices(budget, gpus)) if gpus else "cpu"


def trial_slots(budget: Budget, nodes: Sequence[Node]) -> TrialSlots:
    """Return what each trial computes on, and how many have room at a time.

    Args:
        budget: What a trial needs, and at most how many run at a time.
        nodes: The machines; a trial runs on one of them.

    Raises:
        InvalidInput: None of them has room for a trial.
    """
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    share = resolve_devices(budget, gpus)
    slots = sum(_slots_on(node, budget.cpus_per_trial, share) for node in nodes)
    if not slots:
        raise _no_room(budget, share, nodes)
    return TrialSlots(share, min(slots, budget.concurrency or slots), gpus)


def _slots_on(node: Node, cpus: int, gpu_share: float) -> int:
    """Return how many trials have room on a node.

    In integers of Ray's unit, because 1 // 0.1 is 9. A share is one of a single GPU: 0.4 leaves a
    fifth of each GPU unused.
    """
    slots = _units(node.cpus) // _units(cpus)
    if not gpu_share:
        return slots
    return min(slots, len(node.gpus) * (RESOURCE_UNITS // _units(gpu_share)))


def _units(amount: float) -> int:
    return round(amount * RESOURCE_UNITS)


def _no_room(budget: Budget, gpu_share: float, nodes: Sequence[Node]) -> InvalidInput:
    where = "the machine or cluster"
    most = max((node.cpus for node in nodes), default=0.0)
    if gpu_share and not any(node.gpus for node in nodes):
        return no_gpu(gpu_share, where)
    if budget.cpus_per_trial > most:
        key = "budget.cpus_per_trial"
        return InvalidInput(
            file=where,
            key=key,
            found=budget.cpus_per_trial,
            rule=f"at most the {most:g} CPUs that are available on a node",
            fix=f"lower {key}",
        )
    return InvalidInput(
        file=where,
        key=f"budget.cpus_per_trial, {KEY}",
        found=f"{budget.cpus_per_trial}, {gpu_share:g}",
        rule="what a node with a GPU has: those with GPUs have at most "
        f"{max(node.cpus for node in nodes if node.gpus):g} CPUs",
        fix="lower budget.cpus_per_trial",
    )


def no_gpu(gpu_share: float, where: str = "") -> InvalidInput:
    """Return the error of a share of a GPU where none is visible."""
    return InvalidInput(
        file=where,
        key=KEY,
        found=gpu_share,
        rule="a GPU, and none is visible (nvidia-smi, CUDA_VISIBLE_DEVICES, or Ray's resources)",
        fix="set it to auto or 0 to train on CPUs, or run on a machine or a cluster (--address) "
        "with a GPU",
    )


def check_devices(experiment: Experiment, gpus: Sequence[Gpu]) -> list[str]:
    """Check that trials can run as the experiment states, before anything is started.

    Args:
        experiment: With absolute paths.
        gpus: Those of this machine or of the cluster. Where there are none, but a trial needs one,
            only what does not depend on them is checked.

    Returns:
        What the user should know.

    Raises:
        InvalidInput: A trial cannot run.
    """
    share = resolve_devices(experiment.budget, gpus)
    training = experiment.training
    device, precision = device_of(share), str(training.precision)
    if device == "cuda":
        precision = _check_precision(precision, gpus)
    with located("", "training.attention"):
        check_attention(training.attention, device=device, precision=precision)
    if not share:
        if not gpus:
            return []
        return [f"trials run on CPUs: {KEY} is 0, and {_format_count(gpus)} visible"]
    if not gpus:
        return [f"no GPU is visible here, and {KEY} is {share:g}: a search needs one"]
    _check_memory(experiment, share, gpus, in_bf16=precision == "bf16")
    return []


def _format_count(gpus: Sequence[Gpu]) -> str:
    return f"{len(gpus)} GPU{'s are' if len(gpus) > 1 else ' is'}"


def _check_precision(precision: str, gpus: Sequence[Gpu]) -> str:
    """Return the precision of trials: `bf16`, `fp32`, or `auto` where it is not known yet."""
    lacking = next((gpu for gpu in gpus if gpu.has_bf16 is False), None)
    if precision == "bf16" and lacking is not None:
        major, minor = lacking.capability or (0, 0)
        raise InvalidInput(
            key="training.precision",
            found=f"bf16 on {lacking.name}, of compute capability {major}.{minor}",
            rule="a GPU of compute capability 8.0 or higher",
            fix="set it to fp32 or auto",
        )
    if precision != "auto":
        return precision
    if lacking is not None:
        capable = next((gpu for gpu in gpus if gpu.has_bf16), None)
        if capable is not None:
            raise InvalidInput(
                key="training.precision",
                found=f"auto, which is bf16 on {capable.name} and fp32 on {lacking.name}",
                rule="one precision for all trials of a run",
                fix="set it to fp32, or hide GPUs with CUDA_VISIBLE_DEVICES",
            )
        return "fp32"
    return "bf16" if gpus and all(gpu.has_bf16 for gpu in gpus) else "auto"


def _check_memory(
    experiment: Experiment, gpu_share: float, gpus: Sequence[Gpu], *, in_bf16: bool
) -> None:
    """Raise `InvalidInput` if the estimated memory of a trial is more than its share of a GPU."""
    memory = min((gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None), default=None)
    dimensions, parameters = base_dimensions(experiment.base), count_parameters(experiment.base)
    if memory is None or parameters is None:
        return
    training = experiment.training
    if dimensions is None:
        needed = least = (STATE_BYTES * parameters + CONTEXT_BYTES) / GIB
        part = "for weights, gradients and optimizer alone"
    else:
        sequences = training.batch_tokens // training.seq_len
        memory_of = memory_by_micro_batch(training, dimensions, device="cuda", in_bf16=in_bf16)
        micro_batch = 1 if training.micro_batch == "auto" else min(training.micro_batch, sequences)
        needed = memory_of(micro_batch=micro_batch).required / GIB
        least = memory_of(micro_batch=1).required / GIB
        unit = "sequences" if micro_batch > 1 else "sequence"
        part = f"with {micro_batch} {unit} per forward pass"
    available = gpu_share * memory
    if needed <= available:
        return
    if least <= available:
        fix = "set training.micro_batch to auto"
    elif least <= memory:
        fix = f"set {KEY} to {_rounded_up(least / memory):g} or more"
    else:
        fix = "use a smaller proxy of the same family or a larger GPU"
        if dimensions is not None and not training.recompute:
            fix += ", or set training.recompute to true"
    raise InvalidInput(
        key=KEY,
        found=f"{gpu_share:g}, which is {available:.1f} of {memory:.1f} GiB",
        rule=f"the memory of a trial, estimated at {needed:.1f} GiB {part}",
        fix=fix,
    )


def memory_by_micro_batch(
    training: TrainingSection, dimensions: ModelDimensions, *, device: Device, in_bf16: bool
) -> Callable[..., TrainingMemory]:
    """Return the estimated memory of an experiment's trials, as a function of `micro_batch`."""
    attention = expected_attention(
        training.attention,
        device=device,
        precision="bf16" if in_bf16 else "fp32",
        seq_len=training.seq_len,
        isolated=not training.cross_documents,
    )
    return partial(
        training_memory,
        dimensions,
        seq_len=training.seq_len,
        in_bf16=in_bf16,
        attention=attention,
        recompute=training.recompute,
        isolated=not training.cross_documents,
    )


def _rounded_up(share: float) -> float:
    """Return the next share, in percent, that fits a GPU as often as this one."""
    percent = math.ceil(share * 100)
    return (100 // (100 // percent)) / 100
