"""SkyPilot: a task for `sky jobs launch`, which finds other machines when it loses its own."""

from typing import Any

import yaml

from sweepcp.errors import BadInput
from sweepcp.export.handoff import Handoff, Raw, Source
from sweepcp.export.launchers.kubernetes import on_nodes
from sweepcp.export.launchers.shell import PORT, RESTARTS, environment, lines, patience, torchrun
from sweepcp.export.site import SkyPilot


def write(source: Source, handoff: Handoff) -> dict[str, str]:
    """`task.yaml`. Secrets are named without a value: `sky jobs launch --secret NAME` takes it from the environment."""
    site, hardware = _settings(source), source.bundle.target.hardware
    resources: dict[str, Any] = {"job_recovery": {"max_restarts_on_errors": RESTARTS}}
    if site.infra is not None:
        resources["infra"] = site.infra
    if source.on_gpu:
        resources["accelerators"] = f"{site.gpu}:{hardware.per_node}"
    if site.image is not None:
        resources["image_id"] = f"docker:{site.image}"
    place = ["--nnodes", str(hardware.nodes), "--node-rank", Raw("$SKYPILOT_NODE_RANK")]
    place += ["--master-addr", Raw('$(echo "$SKYPILOT_NODE_IPS" | head -n 1)')]
    place += ["--master-port", str(PORT)]
    task: dict[str, Any] = {
        "name": source.job,
        "num_nodes": hardware.nodes,
        "resources": resources,
        "volumes": {site.mount: site.volume},
        "envs": environment(source, handoff) | patience(source),
    }
    if source.site.secrets:
        task["secrets"] = dict.fromkeys(source.site.secrets)
    task["run"] = f"set -euo pipefail\nexec {lines(torchrun(source, handoff, place))}\n"
    return {"task.yaml": yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=200)}


def how(source: Source) -> str:
    """How it is started."""
    secrets = "".join(f" --secret {name}" for name in source.site.secrets)
    return f"sky jobs launch {source.out}/task.yaml{secrets}"


def _settings(source: Source) -> SkyPilot:
    site = source.site.skypilot
    if site is None:
        rule = "SkyPilot needs a volume that all nodes mount"
        raise BadInput(source.where, "skypilot", None, rule, "add `skypilot:` to the file, and name it by --site")
    if source.on_gpu and site.gpu is None:
        raise BadInput(source.where, "skypilot.gpu", None, "the GPU's name", "add `gpu: H100`, as `sky show-gpus` says")
    on_nodes(source, site.mount)
    return site


class _Dumper(yaml.SafeDumper):
    """Scripts as blocks of lines, not as one quoted line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
