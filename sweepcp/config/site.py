"""The site file: what a cluster asks of a job, which no recipe knows."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.safe_text import (
    SECRET_NAME,
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
from sweepcp.errors import InvalidInput


class Slurm(ConfigModel):
    """Of a Slurm cluster."""

    partition: PlainName | None = None
    account: PlainName | None = None
    qos: PlainName | None = None
    time: SlurmTime | None = None
    cpus_per_gpu: PositiveInt | None = None
    """Or per process, on CPUs."""
    max_failures: PositiveInt = 10
    """After so many failures the job is not queued again; preemption is none."""


class Kubernetes(ConfigModel):
    """Of a Kubernetes cluster with KubeRay or Kubeflow Trainer."""

    namespace: KubernetesName = "default"
    image: ContainerImage
    """With the trainer in it."""
    claim: KubernetesName
    """PersistentVolumeClaim that all nodes can mount and write: bundle, stores, model and run are on it."""
    mount: AbsolutePath
    """Where it is mounted: at the same path as on the machine on which the bundle was made."""
    secret: KubernetesName | None = None
    """The Secret that holds `secrets`, one key each."""
    runtime: KubernetesName = "torch-distributed"
    """Of Kubeflow Trainer."""
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")] | None = None
    cpus: PositiveInt | None = None
    """Memory and CPUs of a node."""


class SkyPilot(ConfigModel):
    """Of SkyPilot."""

    infra: Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9/*_.-]*$")] | None = None
    gpu: PlainName | None = None
    """As `sky show-gpus` calls it: H100."""
    image: ContainerImage | None = None
    volume: PlainName
    """A volume that all nodes can mount and write."""
    mount: AbsolutePath
    """Where it is mounted: at the same path as on the machine on which the bundle was made."""


class Site(ConfigModel):
    """A site file."""

    job: PlainName | None = None
    """Name of the job; by default that of the bundle."""
    python: AbsolutePath | PlainName = "python"
    """On the nodes, with the trainer in it."""
    megatron: AbsolutePath = "/opt/Megatron-LM"
    """A checkout of Megatron-LM."""
    grace: Annotated[int, Field(ge=30)] = 600
    """Seconds in which a run saves when its time is up, or when its machines are wanted."""
    env: dict[EnvironmentName, EnvironmentValue] = Field(default_factory=dict)
    secrets: tuple[EnvironmentName, ...] = ()
    """Names of environment variables that the job gets from where it is submitted, or from a secret."""
    slurm: Slurm = Slurm()
    kubernetes: Kubernetes | None = None
    skypilot: SkyPilot | None = None

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name in self.env:
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"{name} is a secret by its name; fix: name it under `secrets`, without its value"
                )
        if both := set(self.env) & set(self.secrets):
            raise ValueError(
                f"{', '.join(sorted(both))} has one source; fix: remove it from `env` or `secrets`"
            )
        return self


def load_site(name: str | None) -> tuple[Site, Path | None]:
    """A site by its path or the name of a shipped one, or what holds without one. Raises `BadInput`."""
    if name is None:
        return Site(), None
    path = find_config_file(name, "experiments/sites", "--site")
    return validate(Site, read_yaml(path), path), path


def below(path: str, mount: str, where: object, key: str) -> None:
    """Raise `BadInput` unless a path is on the storage that is mounted at `mount`."""
    if not Path(path).is_relative_to(mount):
        rule = f"a path below {mount}, where the nodes mount the shared storage"
        raise InvalidInput(
            file=where,
            key=key,
            found=path,
            rule=rule,
            fix="move it there, or correct `mount` in the site file",
        )
