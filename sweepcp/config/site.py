"""Site file: what a cluster requires of a job, such as a partition, an image or a volume."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.safe_text import (
    SECRET_NAME_PATTERN,
    AbsolutePath,
    ContainerImage,
    EnvironmentName,
    EnvironmentValue,
    KubernetesName,
    PlainName,
    SlurmTime,
)
from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel, validate
from sweepcp.config.yaml_files import find_config_file, read_yaml


class Slurm(ConfigModel):
    """Settings of jobs on a Slurm cluster."""

    partition: PlainName | None = None
    account: PlainName | None = None
    qos: PlainName | None = None
    time: SlurmTime | None = None
    cpus_per_gpu: PositiveInt | None = None
    """CPUs per GPU; per process if the target trains on CPUs."""
    max_failures: PositiveInt = 10
    """Failures, without a complete checkpoint in between, after which a job is not requeued again;
    preemption and time limits do not count."""


class Kubernetes(ConfigModel):
    """Settings of jobs on a Kubernetes cluster with KubeRay or Kubeflow Trainer."""

    namespace: KubernetesName = "default"
    image: ContainerImage
    """Container image in which the trainer is installed."""
    claim: KubernetesName
    """PersistentVolumeClaim that all nodes can mount and write.

    It holds the bundle, the token stores, the model and the run.
    """
    mount: AbsolutePath
    """The path at which nodes mount it: the same as on the machine on which the bundle was made."""
    secret: KubernetesName | None = None
    """The Secret that holds `secrets`, with a key for each."""
    runtime: KubernetesName = "torch-distributed"
    """Training runtime of Kubeflow Trainer."""
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")] | None = None
    """Memory per node."""
    cpus: PositiveInt | None = None
    """CPUs per node."""


class SkyPilot(ConfigModel):
    """Settings of jobs that SkyPilot launches."""

    infra: Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9/*_.-]*$")] | None = None
    gpu: PlainName | None = None
    """Name of the GPU as `sky show-gpus` lists it, such as H100."""
    image: ContainerImage | None = None
    volume: PlainName
    """A volume that all nodes can mount and write."""
    mount: AbsolutePath
    """The path at which nodes mount it: the same as on the machine on which the bundle was made."""


class Site(ConfigModel):
    """Content of a site file."""

    job: PlainName | None = None
    """Name of the job; by default that of the bundle."""
    python: AbsolutePath | PlainName = "python"
    """Python on the nodes, in which the trainer is installed."""
    megatron: AbsolutePath = "/opt/Megatron-LM"
    """Checkout of Megatron-LM on the nodes."""
    grace: Annotated[int, Field(ge=30)] = 600
    """Seconds that a run has to save its state before a time limit or a preemption ends it."""
    env: dict[EnvironmentName, EnvironmentValue] = Field(default_factory=dict)
    """Environment variables of every process."""
    secrets: tuple[EnvironmentName, ...] = ()
    """Names of environment variables that the job gets from the shell that submits it, or from a
    Secret."""
    slurm: Slurm = Slurm()
    kubernetes: Kubernetes | None = None
    skypilot: SkyPilot | None = None

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        for name in self.env:
            if SECRET_NAME_PATTERN.search(name):
                raise ValueError(
                    f"{name} is a secret by its name; "
                    "fix: name it under `secrets`, without its value"
                )
        if both := set(self.env) & set(self.secrets):
            raise ValueError(
                f"{', '.join(sorted(both))} has one source; fix: remove it from `env` or `secrets`"
            )
        return self


def load_site(name: str | None) -> tuple[Site, Path | None]:
    """Load a site file by its path or the name of a shipped one.

    Returns:
        The site and its file; without a name, the defaults and None.

    Raises:
        InvalidInput: There is no such file, or its content is not valid.
    """
    if name is None:
        return Site(), None
    path = find_config_file(name, kind="experiments/sites", key="--site")
    return validate(Site, read_yaml(path), path), path
