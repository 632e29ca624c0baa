"""SkyPilot: a task for `sky jobs launch`, which recovers the job on other machines."""

import re
from typing import Any

import yaml

from sweepcp.config.skypilot import SkyPilot
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.shared_storage import check_shared_paths
from sweepcp.export.launchers.shell import (
    MAX_RESTARTS,
    RENDEZVOUS_PORT,
    option_lines,
    process_environment,
    quote_words,
    shutdown_timeout,
    torchrun_command,
    torchrun_restarts,
)

NAME_PATTERN = re.compile(r"[a-zA-Z0-9]+([._-]{1,2}[a-zA-Z0-9]+)*")
"""`_VALID_NAME_REGEX` of sky/task.py."""
HEAD_ADDRESS = ShellVariable('$(echo "$SKYPILOT_NODE_IPS" | head -n 1)')


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as a block instead of one quoted line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_BlockDumper.add_representer(str, _represent_text)


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `task.yaml`."""
    skypilot = _require_skypilot(export_input)
    hardware = export_input.bundle.target.hardware
    node_options = ["--nnodes", str(hardware.nodes)]
    node_options += ["--node-rank", ShellVariable("$SKYPILOT_NODE_RANK")]
    node_options += ["--master-addr", HEAD_ADDRESS, "--master-port", str(RENDEZVOUS_PORT)]
    command = option_lines(torchrun_command(export_input, plan, node_options))
    task: dict[str, Any] = {
        "name": export_input.job_name,
        "num_nodes": hardware.nodes,
        "resources": _resources(export_input, skypilot),
        "volumes": {skypilot.mount: skypilot.volume},
        "envs": process_environment(export_input, plan) | shutdown_timeout(export_input),
    }
    if skypilot.file_mounts:
        task["file_mounts"] = dict(skypilot.file_mounts)
    if export_input.site.secrets:
        # Without values: `sky jobs launch --secret NAME` takes them from the environment.
        task["secrets"] = dict.fromkeys(export_input.site.secrets)
    if skypilot.setup:
        task["setup"] = "\n".join(skypilot.setup) + "\n"
    task["run"] = f"set -euo pipefail\nexec {command}\n"
    text = yaml.dump(task, Dumper=_BlockDumper, sort_keys=False, width=200, allow_unicode=True)
    return {"task.yaml": text}


def restart_policy(_export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    return (
        f"{torchrun_restarts(plan)} SkyPilot then starts the job again up to {MAX_RESTARTS} times, "
        "and without limit after it lost a machine."
    )


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    secrets = [word for name in export_input.site.secrets for word in ("--secret", name)]
    return quote_words(["sky", "jobs", "launch", f"{export_input.out}/task.yaml", *secrets])


def _require_skypilot(export_input: ExportInput) -> SkyPilot:
    """Return the site's SkyPilot section, or raise `InvalidInput`."""
    skypilot = export_input.site.skypilot
    if skypilot is None:
        raise InvalidInput(
            key="skypilot",
            found=None,
            rule="SkyPilot needs a volume that all nodes mount",
            fix="add `skypilot:` to a site file, and pass the file with --site",
        )
    if export_input.on_gpu and skypilot.gpu is None:
        raise InvalidInput(
            key="skypilot.gpu",
            found=None,
            rule="the GPU's name in SkyPilot",
            fix="add a name that `sky show-gpus` lists, such as `gpu: H100`",
        )
    if not NAME_PATTERN.fullmatch(export_input.job_name):
        raise InvalidInput(
            key="job" if export_input.site.job else "name",
            found=export_input.job_name,
            rule="a name of SkyPilot: letters and digits, with at most two of `._-` between them",
            fix="set `job:` in the site file",
        )
    check_shared_paths(export_input, skypilot.mount)
    return skypilot


def _resources(export_input: ExportInput, skypilot: SkyPilot) -> dict[str, Any]:
    resources: dict[str, Any] = {"job_recovery": {"max_restarts_on_errors": MAX_RESTARTS}}
    if skypilot.infra is not None:
        resources["infra"] = skypilot.infra
    if skypilot.any_of:
        resources["any_of"] = [{"infra": infra} for infra in skypilot.any_of]
    if skypilot.use_spot:
        resources["use_spot"] = True
    if export_input.on_gpu:
        per_node = export_input.bundle.target.hardware.per_node
        resources["accelerators"] = f"{skypilot.gpu}:{per_node}"
    for name in ("cpus", "memory", "disk_size"):
        if (amount := getattr(skypilot, name)) is not None:
            resources[name] = amount
    if skypilot.image is not None:
        resources["image_id"] = f"docker:{skypilot.image}"
    return resources
