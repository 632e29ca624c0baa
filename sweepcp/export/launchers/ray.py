"""Ray: a Ray Train script, and a KubeRay RayJob that runs it on its own cluster."""

import json
from string import Template
from typing import Any

import yaml

from sweepcp.config.kubernetes import Kubernetes
from sweepcp.config.safe_text import PLAIN_PATH_PATTERN
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan, python_literal
from sweepcp.export.launchers.kubernetes import (
    env_entries,
    job_metadata,
    node_resources,
    pod_metadata,
    pod_placement,
    pod_volumes,
    require_kubernetes,
    volume_mounts,
)
from sweepcp.export.launchers.shell import (
    MAX_RESTARTS,
    RENDEZVOUS_PORT,
    process_environment,
    quote_words,
)

LONGEST_NAME = 47
"""KubeRay names the cluster of a job with 6 more characters, and the services of the cluster with
10 more, of at most 63 (`MaxRayJobNameLength` of ray-operator/controllers/ray/utils/constant.go)."""

SCRIPT = Template("""\
import os
import runpy
import socket
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

COMMAND = $command
# Exit statuses after which a restart would end in the same way, on all ranks.
FINAL = $final


def worker():
    context = get_context()
    os.environ["MASTER_ADDR"] = broadcast_from_rank_zero(socket.gethostbyname(socket.gethostname()))
    os.environ["MASTER_PORT"] = "$port"
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    module = COMMAND[0] == "-m"
    sys.argv = COMMAND[1:] if module else list(COMMAND)
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code in FINAL:
            return end.code
        if end.code:
            raise RuntimeError(f"{sys.argv[0]} exited with status {end.code}") from None
    return 0


if __name__ == "__main__":
    trainer = DataParallelTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=$workers, use_gpu=$gpu),
        run_config=RunConfig(
            name=$job,
            storage_path=$storage,
            failure_config=FailureConfig(max_failures=$restarts),
        ),
    )
    sys.exit(trainer.fit().return_value)
""")


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `ray_train.py`, and `rayjob.yaml` if the site has Kubernetes."""
    script = SCRIPT.substitute(
        command=f"[{', '.join(map(python_literal, plan.command))}]",
        final=json.dumps([3] if plan.starts_sweepcp else []),
        port=RENDEZVOUS_PORT,
        workers=export_input.bundle.target.hardware.world_size,
        gpu=export_input.on_gpu,
        job=python_literal(export_input.job_name),
        storage=python_literal(f"{export_input.out}/ray"),
        restarts=MAX_RESTARTS,
    )
    files = {"ray_train.py": script}
    if export_input.site.kubernetes is not None:
        job = _ray_job(export_input, plan, _require_kubernetes(export_input))
        files["rayjob.yaml"] = yaml.safe_dump(job, sort_keys=False, width=120, allow_unicode=True)
    return files


def restart_policy(export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    final = ", but not after status 3, which the script exits with" if plan.starts_sweepcp else ""
    sentence = f"Ray Train restarts the processes up to {MAX_RESTARTS} times{final}."
    if export_input.site.kubernetes is not None:
        sentence += f" KubeRay then starts a failed job again up to {MAX_RESTARTS} times."
    return sentence


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    if export_input.site.kubernetes is not None:
        return quote_words(["kubectl", "apply", "-f", f"{export_input.out}/rayjob.yaml"])
    return _script_command(export_input)


def _script_command(export_input: ExportInput) -> str:
    return quote_words([export_input.site.python, f"{export_input.out}/ray_train.py"])


def _require_kubernetes(export_input: ExportInput) -> Kubernetes:
    """Return the site's Kubernetes section, or raise `InvalidInput`."""
    kubernetes = require_kubernetes(
        export_input,
        longest=LONGEST_NAME,
        because="because KubeRay adds 16 to it and Kubernetes allows 63",
    )
    # KubeRay splits the entrypoint into words, `ray job submit` joins them, and a shell on the head
    # splits them again: no quotes are right for all of these.
    for key, path in (("--out", str(export_input.out)), ("python", export_input.site.python)):
        if not PLAIN_PATH_PATTERN.fullmatch(f"/{path}"):
            raise InvalidInput(
                key=key,
                found=path,
                rule=f"in a RayJob, a path that matches {PLAIN_PATH_PATTERN.pattern}",
                fix="name a path without spaces and special characters",
            )
    return kubernetes


def _ray_job(export_input: ExportInput, plan: ExportPlan, kubernetes: Kubernetes) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": job_metadata(export_input, kubernetes),
        "spec": {
            "entrypoint": _script_command(export_input),
            "backoffLimit": MAX_RESTARTS,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": _ray_cluster(export_input, plan, kubernetes),
        },
    }


def _ray_cluster(
    export_input: ExportInput, plan: ExportPlan, kubernetes: Kubernetes
) -> dict[str, Any]:
    hardware = export_input.bundle.target.hardware
    head = _container("head", export_input, plan, kubernetes)
    node = _container("node", export_input, plan, kubernetes)
    if resources := node_resources(export_input, kubernetes):
        node["resources"] = resources
    # Ray Train places one worker per GPU or CPU. The head has no CPUs, so no worker runs there.
    slots = {} if export_input.on_gpu else {"num-cpus": str(hardware.per_node)}
    node_group = {
        "groupName": "nodes",
        "replicas": hardware.nodes,
        "minReplicas": hardware.nodes,
        "maxReplicas": hardware.nodes,
        "rayStartParams": slots,
        "template": _pod_template(export_input, kubernetes, node),
    }
    head_group = {
        "rayStartParams": {"num-cpus": "0"},
        "template": _pod_template(export_input, kubernetes, head),
    }
    return {"headGroupSpec": head_group, "workerGroupSpecs": [node_group]}


def _container(
    name: str, export_input: ExportInput, plan: ExportPlan, kubernetes: Kubernetes
) -> dict[str, Any]:
    variables = process_environment(export_input, plan)
    return {
        "name": name,
        "image": kubernetes.image,
        "env": env_entries(export_input, kubernetes, variables),
        "volumeMounts": volume_mounts(kubernetes),
    }


def _pod_template(
    export_input: ExportInput, kubernetes: Kubernetes, container: dict[str, Any]
) -> dict[str, Any]:
    spec = {
        "terminationGracePeriodSeconds": export_input.site.grace,
        **pod_placement(kubernetes),
        "containers": [container],
        "volumes": pod_volumes(kubernetes),
    }
    if kubernetes.priority_class_name is not None:
        spec["priorityClassName"] = kubernetes.priority_class_name
    return pod_metadata(kubernetes) | {"spec": spec}
