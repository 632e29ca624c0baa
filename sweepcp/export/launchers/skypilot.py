"""SkyPilot: a task for `sky jobs launch`, which finds other machines when it loses its own."""

from typing import Any

import yaml

from sweepcp.config.site import SkyPilot
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.kubernetes import on_nodes
from sweepcp.export.launchers.shell import (
    PORT,
    RESTARTS,
    option_lines,
    process_environment,
    shutdown_timeout,
    torchrun_command,
)


def write(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """`task.yaml`. Secrets are named without a value: `sky jobs launch --secret NAME` takes it from the environment."""
    site, hardware = _settings(source), source.bundle.target.hardware
    resources: dict[str, Any] = {"job_recovery": {"max_restarts_on_errors": RESTARTS}}
    if site.infra is not None:
        resources["infra"] = site.infra
    if source.on_gpu:
        resources["accelerators"] = f"{site.gpu}:{hardware.per_node}"
    if site.image is not None:
        resources["image_id"] = f"docker:{site.image}"
    place = ["--nnodes", str(hardware.nodes), "--node-rank", ShellVariable("$SKYPILOT_NODE_RANK")]
    place += ["--master-addr", ShellVariable('$(echo "$SKYPILOT_NODE_IPS" | head -n 1)')]
    place += ["--master-port", str(PORT)]
    task: dict[str, Any] = {
        "name": source.job,
        "num_nodes": hardware.nodes,
        "resources": resources,
        "volumes": {site.mount: site.volume},
        "envs": process_environment(source, handoff) | shutdown_timeout(source),
    }
    if source.site.secrets:
        task["secrets"] = dict.fromkeys(source.site.secrets)
    task["run"] = (
        f"set -euo pipefail\nexec {option_lines(torchrun_command(source, handoff, place))}\n"
    )
    return {"task.yaml": yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=200)}


def how(source: ExportInput) -> str:
    """How it is started."""
    secrets = "".join(f" --secret {name}" for name in source.site.secrets)
    return f"sky jobs launch {source.out}/task.yaml{secrets}"


def _settings(source: ExportInput) -> SkyPilot:
    site = source.site.skypilot
    if site is None:
        rule = "SkyPilot needs a volume that all nodes mount"
        raise InvalidInput(
            file=source.where,
            key="skypilot",
            found=None,
            rule=rule,
            fix="add `skypilot:` to the file, and name it by --site",
        )
    if source.on_gpu and site.gpu is None:
        raise InvalidInput(
            file=source.where,
            key="skypilot.gpu",
            found=None,
            rule="the GPU's name",
            fix="add `gpu: H100`, as `sky show-gpus` says",
        )
    on_nodes(source, site.mount)
    return site


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks of lines, not as one quoted line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None
    )


_Dumper.add_representer(str, _text)
