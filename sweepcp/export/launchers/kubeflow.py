"""Kubeflow Trainer: a TrainJob (trainer.kubeflow.org/v1alpha1)."""

from typing import Any

import yaml

from sweepcp.config.site import Kubernetes
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers.kubernetes import (
    annotations,
    env_entries,
    node_resources,
    pod_volumes,
    require_kubernetes,
    volume_mounts,
)
from sweepcp.export.launchers.shell import (
    process_environment,
    shutdown_timeout,
    torchrun_command,
    torchrun_restarts,
)

MANAGER = "sweepcp.export/job"


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `trainjob.yaml`."""
    kubernetes = require_kubernetes(export_input)
    patch = {
        "manager": MANAGER,
        "trainingRuntimeSpec": {
            "template": {"spec": {"replicatedJobs": [_node_patch(export_input, kubernetes)]}}
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": export_input.job_name,
            "namespace": kubernetes.namespace,
            "annotations": annotations(export_input),
        },
        "spec": {
            "runtimeRef": {"name": kubernetes.runtime},
            "trainer": _trainer(export_input, plan, kubernetes),
            "runtimePatches": [patch],
        },
    }
    return {"trainjob.yaml": yaml.safe_dump(job, sort_keys=False, width=120)}


def restart_policy(_export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    return f"{torchrun_restarts(plan)} Whether pods are then replaced, the training runtime states."


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    return f"kubectl apply -f {export_input.out}/trainjob.yaml"


def _trainer(export_input: ExportInput, plan: ExportPlan, kubernetes: Kubernetes) -> dict[str, Any]:
    hardware = export_input.bundle.target.hardware
    # The runtime sets the number of nodes, the node's rank and the address in PET_ variables, which
    # torchrun reads, so there are no options for them.
    python, *arguments = torchrun_command(export_input, plan, ())
    variables = process_environment(export_input, plan) | shutdown_timeout(export_input)
    trainer = {
        "image": kubernetes.image,
        "command": [python],
        "args": arguments,
        "env": env_entries(export_input, kubernetes, variables),
        "numNodes": hardware.nodes,
        "numProcPerNode": hardware.per_node,
    }
    if resources := node_resources(export_input, kubernetes):
        trainer["resourcesPerNode"] = resources
    return trainer


def _node_patch(export_input: ExportInput, kubernetes: Kubernetes) -> dict[str, Any]:
    pod = {
        "terminationGracePeriodSeconds": export_input.site.grace,
        "volumes": pod_volumes(kubernetes),
        "containers": [{"name": "node", "volumeMounts": volume_mounts(kubernetes)}],
    }
    return {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
