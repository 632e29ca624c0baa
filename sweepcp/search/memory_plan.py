"""The memory that a plan states: of one trial, against that of the device it would run on."""

from collections.abc import Sequence
from dataclasses import dataclass

from sweepcp.config.budget import Budget
from sweepcp.config.experiment import Experiment, TrainingSection
from sweepcp.config.recipe import Recipe
from sweepcp.models.base import base_dimensions, count_parameters
from sweepcp.models.memory import (
    CONTEXT_BYTES,
    STATE_BYTES,
    StepMemory,
    largest_micro_batch,
)
from sweepcp.search.devices import memory_by_micro_batch, resolve_devices
from sweepcp.util.gpus import Gpu, visible_gpus
from sweepcp.util.memory import GIB, usable_memory
from sweepcp.util.parallel import usable_cores

ASSUMED_GPU, ASSUMED_GIB = "a GPU of 80 GB", 79.0
"""Where trials need a GPU and none is visible. An H100 of 80 GB has 79.1 GiB for programs."""


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """The memory of a device that a trial may use."""

    available: float
    """Bytes of the device, or of the trial's share of it."""
    total: float
    """Bytes of the whole device."""
    name: str
    """The device and the share of it, in words."""
    larger_share: str
    """What gives a trial more of the device."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a trial at the micro batch that it starts with."""

    states: int
    """Bytes of weights, gradients and optimizer state."""
    step: StepMemory | None
    """The rest; None if the base's dimensions are not known."""
    micro_batch: int | None
    """Sequences per forward pass; None if `step` is."""
    required: int
    """Bytes that the trial needs of the device, without those that are not known."""
    device: DeviceMemory

    @property
    def fits(self) -> bool:
        """Whether what is known of the need is available."""
        return self.required <= self.device.available

    @property
    def overhead(self) -> int:
        """Bytes of `required` that training itself does not use."""
        return self.required - self.states - (self.step.total if self.step else 0)

    def warnings(self, training: TrainingSection) -> list[str]:
        """Return a warning if the trial does not fit, with what helps."""
        if self.fits:
            return []
        need = "for weights, gradients and optimizer alone"
        if self.micro_batch is not None:
            unit = "sequence" if self.micro_batch == 1 else "sequences"
            need = f"with {self.micro_batch} {unit} per forward pass"
        fixes = ["a smaller proxy of the same family", "a larger device"]
        if self.micro_batch is not None and not training.recompute:
            fixes.insert(0, "training.recompute: true")
        if training.micro_batch not in ("auto", 1):
            fixes.insert(0, "training.micro_batch: auto")
        device = self.device
        if device.available < self.required <= device.total:
            fixes.insert(0, device.larger_share)
        return [
            f"a trial needs {self.required / GIB:.1f} GiB {need}, and "
            f"{device.available / GIB:.1f} GiB are available ({device.name}): "
            f"use {' or '.join(fixes)}"
        ]


def plan_memory(experiment: Experiment, first: Recipe) -> MemoryPlan | None:
    """Estimate the memory of a trial on the GPU that is visible, on the CPU, or on `ASSUMED_GPU`.

    Args:
        experiment: With absolute paths.
        first: The recipe of its first trial.

    Returns:
        None if the size of the base is not known.
    """
    training, gpus = experiment.training, visible_gpus()
    share = resolve_devices(experiment.budget, gpus)
    device = _device_memory(experiment.budget, share, gpus)
    dimensions, parameters = base_dimensions(experiment.base), count_parameters(experiment.base)
    if dimensions is None:
        if parameters is None:
            return None
        states = STATE_BYTES * parameters
        return MemoryPlan(states, None, None, states + CONTEXT_BYTES, device)
    may_use_bf16 = share > 0 and all(gpu.has_bf16 is not False for gpu in gpus)
    in_bf16 = training.precision == "bf16" or (training.precision == "auto" and may_use_bf16)
    memory_of = memory_by_micro_batch(
        training, dimensions, device="cuda" if share else "cpu", in_bf16=in_bf16
    )
    if training.micro_batch == "auto":
        micro_batch = largest_micro_batch(
            memory_of, sequences=first.sequences, available_bytes=device.available
        )
    else:
        micro_batch = min(training.micro_batch, first.sequences)
    memory = memory_of(micro_batch=micro_batch)
    return MemoryPlan(memory.states, memory.step, micro_batch, memory.required, device)


def _device_memory(budget: Budget, share: float, gpus: Sequence[Gpu]) -> DeviceMemory:
    if not share:
        trials = min(
            budget.trials,
            budget.concurrency or budget.trials,
            max(1, usable_cores() // budget.cpus_per_trial),
        )
        total, name = usable_memory(), "this machine"
        return DeviceMemory(
            available=total / trials,
            total=total,
            name=name if trials == 1 else f"{name}, {trials} trials at a time",
            larger_share="a lower budget.concurrency",
        )
    known = [(gpu.memory_gib, gpu.name) for gpu in gpus if gpu.memory_gib is not None]
    # Not that of MIG instances, nor where GPU and CPU share theirs.
    assumed = f"{ASSUMED_GPU}, assumed for {gpus[0].name}" if gpus else ASSUMED_GPU
    gigabytes, name = min(known, default=(ASSUMED_GIB, assumed))
    return DeviceMemory(
        available=share * gigabytes * GIB,
        total=gigabytes * GIB,
        name=name if share == 1 else f"{share:g} of {name}",
        larger_share="a larger budget.gpus_per_trial",
    )
