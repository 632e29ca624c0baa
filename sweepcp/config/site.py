"""Site file: what a cluster requires of a job, such as a partition, an image or a volume."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from sweepcp.config.kubernetes import Kubernetes
from sweepcp.config.safe_text import (
    AbsolutePath,
    EnvironmentName,
    EnvironmentValue,
    PlainName,
    SecretFound,
    is_secret,
)
from sweepcp.config.skypilot import SkyPilot
from sweepcp.config.slurm import Slurm
from sweepcp.config.validation import ConfigModel, validate
from sweepcp.config.yaml_files import find_config_file, read_yaml

SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Environment variables that differ from process to process."""


def _check_environment(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if is_secret(name, value):
            rule = f"{name} is a secret by its name"
            raise SecretFound(f"{rule}; fix: name it under `secrets`, without its value")
        if name in SET_BY_LAUNCHERS:
            raise ValueError(f"{name} is set by launchers; fix: remove it")
    return variables


Environment = Annotated[dict[EnvironmentName, EnvironmentValue], AfterValidator(_check_environment)]


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
    env: Environment = Field(default_factory=dict)
    """Environment variables of every process. Values are literal: no shell expands `$VAR`."""
    secrets: tuple[EnvironmentName, ...] = ()
    """Names of environment variables that the job gets from the shell that submits it, or from a
    Secret."""
    slurm: Slurm = Slurm()
    """Of exports for Slurm."""
    kubernetes: Kubernetes | None = None
    """Of exports for KubeRay (`ray`) and Kubeflow Trainer (`kubeflow`)."""
    skypilot: SkyPilot | None = None
    """Of exports for SkyPilot."""

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        if both := set(self.env) & set(self.secrets):
            raise ValueError(
                f"{', '.join(sorted(both))} has one source; fix: remove it from `env` or `secrets`"
            )
        entries = self.slurm.options.get("export", "ALL").split(",")
        if "ALL" not in entries and (missing := set(self.secrets) - set(entries)):
            names = ", ".join(sorted(missing))
            rule = f"slurm.options.export exports {names}, which are among `secrets`"
            raise ValueError(f"{rule}; fix: add ALL, or these names")
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
