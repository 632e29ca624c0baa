"""Section `skypilot` of a site file: what a task of SkyPilot requires."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.safe_text import (
    AbsolutePath,
    ContainerImage,
    IntegerAsText,
    PlainName,
    Text,
    TextOrInteger,
    matches_text,
)
from sweepcp.config.shell_lines import ShellLines
from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel

INFRA_PATTERN = re.compile(r"[A-Za-z0-9*][A-Za-z0-9/*_.:@-]*")
AMOUNT_PATTERN = re.compile(r"(?=.*[1-9])[0-9]+(\.[0-9]+)?\+?")
"""A number, or at least a number (`Resources._set_cpus` and `_set_memory` of sky/resources.py)."""

Infra = Annotated[
    str,
    matches_text(
        INFRA_PATTERN, "infrastructure of SkyPilot, such as aws, aws/us-east-1 or k8s/context"
    ),
]
Amount = Annotated[
    str,
    IntegerAsText,
    TextOrInteger,
    matches_text(AMOUNT_PATTERN, "a number, or `32+` for at least 32"),
]


class SkyPilot(ConfigModel):
    """Settings of jobs that SkyPilot launches."""

    infra: Infra | None = None
    """Where SkyPilot looks for machines, such as `aws/us-east-1` or `k8s`."""
    any_of: tuple[Infra, ...] = ()
    """Several infrastructures instead of `infra`: SkyPilot takes the cheapest that has machines."""
    gpu: PlainName | None = None
    """Name of the GPU as `sky show-gpus` lists it, such as H100."""
    use_spot: bool = False
    """Whether to use spot machines; SkyPilot recovers the job when they are taken away."""
    cpus: Amount | None = None
    """CPUs per node: a number, or `32+` for at least 32."""
    memory: Amount | None = None
    """GB of memory per node: a number, or `256+` for at least 256."""
    disk_size: PositiveInt | None = None
    """GB of a node's own disk."""
    image: ContainerImage | None = None
    """Container image in which the trainer is installed."""
    volume: PlainName
    """A volume that all nodes can mount and write."""
    mount: AbsolutePath
    """The path at which nodes mount it: the same as on the machine on which the bundle was made."""
    file_mounts: dict[AbsolutePath, Text] = Field(default_factory=dict)
    """Path on the nodes → file or folder on the machine that launches, or the address of a bucket,
    such as `s3://bucket/data`."""
    setup: ShellLines = ()
    """Shell code that SkyPilot runs on every node before the job. It stands in the task as it is
    written."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.infra is not None and self.any_of:
            raise ValueError("`infra` and `any_of` exclude each other; fix: remove one")
        if self.mount in self.file_mounts:
            raise ValueError(f"{self.mount} is the volume; fix: mount the files elsewhere")
        return self
