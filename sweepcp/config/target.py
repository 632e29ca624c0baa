"""The target file: the model, the budget and the machines of the full run."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sweepcp.config.budget import TYPICAL_UTILISATION
from sweepcp.config.deepspeed_settings import DeepSpeedSettings
from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import RELATIVE_FIELDS
from sweepcp.config.types import (
    Attention,
    Fraction,
    HubId,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Revision,
    SafeName,
    WarmupFraction,
)
from sweepcp.config.validation import ConfigModel, validate
from sweepcp.config.yaml_files import find_config_file, read_yaml

Tracker = Literal["wandb", "mlflow", "comet_ml", "clearml", "trackio", "swanlab"]
"""Named as in accelerate, and as the package to install."""


class TargetModel(ConfigModel):
    """The model that is trained: exactly one of `run_base`, `path` and `hub`."""

    run_base: Literal[True] | None = None
    """The base model of the run's trials."""
    path: str | None = None
    """A folder with config.json, safetensors and tokenizer, relative to the target file."""
    hub: HubId | None = None
    """A model hub's id."""
    revision: Revision | None = None
    """Of `hub`: a commit, so that every rank and every resumed run loads the same model."""
    max_lr: PositiveFloat | None = None
    """The max LR of the model's own pretraining, which the recipe takes a fraction of."""
    shape: ModelDimensions | None = None
    """Of a `hub` model, which is not on the machine on which the run is planned."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_remote_code(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("trust_remote_code"):
            raise ValueError(
                "a model's own code is never run; "
                "fix: remove trust_remote_code, and use a model of transformers"
            )
        return content

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        origins = (self.run_base, self.path, self.hub)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a model has exactly one of run_base, path and hub; fix: keep one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub; fix: remove revision")
        if self.run_base is None and self.max_lr is None:
            raise ValueError(
                "the LR is a fraction of the model's own max LR; fix: add `max_lr: ...`"
            )
        if self.run_base and self.max_lr is not None:
            raise ValueError("the max LR of a run's base is known; fix: remove max_lr")
        if self.hub is not None and self.shape is None:
            raise ValueError(
                "a hub model needs its shape here; fix: add `shape: {hidden_size: ...}`"
            )
        if self.hub is None and self.shape is not None:
            raise ValueError("the shape is read from the model's config.json; fix: remove shape")
        return self


class TargetCorpus(ConfigModel):
    """A source of the recipe at the target's scale."""

    store: str
    """The folder of its token store, as `sweepcp data build` shows it; or `planned`."""
    tokens: PositiveInt | None = None
    """Training tokens of a planned store."""
    max_epochs: PositiveFloat = 4.0
    """The number of epochs above which `beyond_max_epochs` applies."""
    beyond_max_epochs: Literal["warn", "refuse"] = "refuse"
    """What happens above it."""

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if (self.store == "planned") != (self.tokens is not None):
            raise ValueError(
                "tokens are stated for a planned store, and counted in any other; "
                "fix: add or remove tokens"
            )
        return self


class Hardware(ConfigModel):
    """The machines. Speeds, sizes and prices serve estimates only."""

    device: Literal["cuda", "cpu"] = "cuda"
    """What processes compute on."""
    nodes: PositiveInt
    """Number of machines."""
    per_node: PositiveInt
    """GPUs, or processes on CPUs, per node."""
    memory_gib: PositiveFloat | None = None
    """GiB of memory per GPU."""
    peak_tflops: PositiveFloat | None = None
    """Dense peak of one device in TFLOP/s, in the precision that is used."""
    mfu: Annotated[float, Field(gt=0, le=1)] = TYPICAL_UTILISATION
    """Model FLOPs utilisation, an assumption until it is measured."""
    usd_per_hour: PositiveFloat | None = None
    """Price of one device per hour, in USD."""

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.nodes * self.per_node


class ComputeSettings(ConfigModel):
    """How a step is computed."""

    micro_batch: PositiveInt = 1
    """Sequences per forward pass of one rank."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: with fp32 master weights, and gradients summed in fp32."""
    attention: Attention = "auto"
    """Implementation of attention. `auto`: on a GPU in bf16 the first of flash_attention_2 (if
    installed), varlen (PyTorch's own) and sdpa that the model supports, and varlen on a CPU for
    isolated documents in sequences of 512 tokens or more; elsewhere sdpa."""
    recompute: bool = False
    """Activation checkpointing: keep only the input of each layer, and recompute its activations
    in the backward pass."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in host memory: nothing, the optimizer state, or the optimizer state and the
    weights."""


class Parallelism(ConfigModel):
    """For exports to trainers that have it (Megatron-LM, torchtitan).

    `sweepcp train` and the other trainers are data-parallel over all devices (ZeRO-3).
    """

    tensor: PositiveInt = 1
    """Devices over which each tensor is divided."""
    pipeline: PositiveInt = 1
    """Devices over which the layers are divided."""

    @property
    def devices_per_replica(self) -> int:
        """The number of devices that hold one copy of the model."""
        return self.tensor * self.pipeline


class CheckpointSettings(ConfigModel):
    """When checkpoints are written, and how many are kept."""

    every: PositiveInt
    """Steps between two checkpoints; one is always written after the last step."""
    keep: Annotated[int, Field(ge=2)] = 2
    """At least 2, so that there is one to use if the newest is damaged."""
    folder: str | None = None
    """On storage that all nodes see, for this run alone; by default `checkpoints` in the run
    folder."""


class HeldOutWatch(ConfigModel):
    """Held-out loss during the run."""

    every: PositiveInt
    """Steps between two measurements; the last step is always measured."""
    max_regression: NonNegativeFloat | None = None
    """Raise an alarm when held-out `general` is lower than minus this many per cent of the
    base's."""
    stop: bool = False
    """Whether an alarm saves a checkpoint and stops the run."""


class SpikeRollback(ConfigModel):
    """Return to a checkpoint before a loss spike, and skip the steps that led to it."""

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    """A loss above this many times the median of the last `window` steps is a spike; so is one
    that is not finite."""
    window: Annotated[int, Field(ge=4)] = 64
    """Steps whose median loss a spike is measured by."""
    at_most: PositiveInt = 3
    """Number of rollbacks; at the next spike the run stops as diverged."""


class Target(ConfigModel):
    """A target file. Paths in it are relative to the file."""

    name: SafeName
    """Names the bundle."""
    model: TargetModel
    """The model that is trained."""
    corpora: dict[str, TargetCorpus] | None = None
    """Source of the recipe → its corpus at this scale; by default those of the run."""
    tokens: PositiveInt
    """Training tokens, a multiple of `batch_tokens`."""
    batch_tokens: PositiveInt
    """Tokens per optimizer step, a multiple of `seq_len`."""
    seq_len: PositiveInt
    """Tokens per sequence."""
    warmup: WarmupFraction | None = None
    """Share of the steps; by default the recipe's."""
    warmup_steps: PositiveInt | None = None
    """Number of steps, in place of `warmup`; by default the recipe's."""
    final_fraction: Fraction | None = None
    """LR of the last step as a fraction of the max LR; by default the recipe's."""
    min_lr: PositiveFloat | None = None
    """LR of the last step, in place of `final_fraction`; by default the recipe's."""
    hardware: Hardware
    """The machines."""
    compute: ComputeSettings = ComputeSettings()
    """How a step is computed."""
    parallelism: Parallelism = Parallelism()
    """For exports to trainers that divide the model."""
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    """Further keys of DeepSpeed's configuration, such as `zero_optimization:
    {zero_hpz_partition_size: 8}`."""
    checkpoints: CheckpointSettings
    """When checkpoints are written."""
    watch: HeldOutWatch
    """Held-out loss during the run."""
    spikes: SpikeRollback | None = None
    """By default there is no rollback."""
    tracking: tuple[Tracker, ...] = ()
    """Trackers beside TensorBoard."""

    @property
    def replicas(self) -> int:
        """The number of copies of the model, over which a step's sequences are divided.

        Every device is one where `parallelism` is not used.
        """
        return self.hardware.world_size // self.parallelism.devices_per_replica

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        for absolute, relative in RELATIVE_FIELDS.items():
            if getattr(self, absolute) is not None and getattr(self, relative) is not None:
                raise ValueError(
                    f"{relative} and {absolute} exclude each other; "
                    "fix: remove one, or set it to null"
                )
        return self

    @model_validator(mode="after")
    def _check_parallelism(self) -> Self:
        devices_per_replica = self.parallelism.devices_per_replica
        world_size = self.hardware.world_size
        if world_size % devices_per_replica:
            raise ValueError(
                f"tensor × pipeline = {devices_per_replica} divides the {world_size} devices; "
                "fix: change one of them"
            )
        return self


def load_target(name: str) -> tuple[Target, Path]:
    """Load a target file by its path or the name of a shipped one.

    Returns:
        The target and its file.

    Raises:
        InvalidInput: There is no such file, or its content is not valid.
    """
    path = find_config_file(name, kind="experiments/targets", key="--target")
    return validate(Target, read_yaml(path), path), path
