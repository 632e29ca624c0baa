"""Kubeflow Trainer: a TrainJob (trainer.kubeflow.org/v1alpha1)."""

from typing import Any

import yaml

from sweepcp.config.kubernetes import Kubernetes
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers.kubernetes import (
    env_entries,
    job_metadata,
    literal,
    node_resources,
    pod_metadata,
    pod_placement,
    pod_volumes,
    require_kubernetes,
    volume_mounts,
)
from sweepcp.export.launchers.shell import (
    process_environment,
    quote_words,
    shutdown_timeout,
    torchrun_command,
    torchrun_restarts,
)

MANAGER = "sweepcp.export/job"
REPLICATED_JOB = "node"
"""Job of the training runtimes for torch whose pods train, and the container in them."""


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `trainjob.yaml`."""
    kubernetes = _require_kubernetes(export_input)
    patch = {
        "manager": MANAGER,
        "trainingRuntimeSpec": {
            "template": {"spec": {"replicatedJobs": [_node_patch(export_input, kubernetes)]}}
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": job_metadata(export_input, kubernetes),
        "spec": {
            "runtimeRef": {"name": kubernetes.runtime},
            "trainer": _trainer(export_input, plan, kubernetes),
            "runtimePatches": [patch],
        },
    }
    return {"trainjob.yaml": yaml.safe_dump(job, sort_keys=False, width=120, allow_unicode=True)}


def restart_policy(_export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    return f"{torchrun_restarts(plan)} Whether pods are then replaced, the training runtime states."


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    return quote_words(["kubectl", "apply", "-f", f"{export_input.out}/trainjob.yaml"])


def _require_kubernetes(export_input: ExportInput) -> Kubernetes:
    """Return the site's Kubernetes section, or raise `InvalidInput`."""
    # JobSet refuses a name with which the name of a pod has more than 63 characters, 5 random ones
    # at its end included (`ValidateCreate` of pkg/webhooks/jobset_webhook.go).
    suffix = f"-{REPLICATED_JOB}-0-{export_input.bundle.target.hardware.nodes - 1}-abcde"
    kubernetes = require_kubernetes(
        export_input,
        longest=63 - len(suffix),
        because=f"because the names of pods add {suffix!r} and have at most 63",
    )
    if kubernetes.priority_class_name is not None:
        raise InvalidInput(
            key="kubernetes.priority_class_name",
            found=kubernetes.priority_class_name,
            rule="a TrainJob cannot state the PriorityClass of its pods",
            fix="state it in the training runtime, and remove it here",
        )
    return kubernetes


def _trainer(export_input: ExportInput, plan: ExportPlan, kubernetes: Kubernetes) -> dict[str, Any]:
    hardware = export_input.bundle.target.hardware
    # The runtime sets the number of nodes, the node's rank and the address in PET_ variables, which
    # torchrun reads, so there are no options for them.
    python, *arguments = torchrun_command(export_input, plan, ())
    variables = process_environment(export_input, plan) | shutdown_timeout(export_input)
    trainer = {
        "image": kubernetes.image,
        "command": [literal(python)],
        "args": [literal(argument) for argument in arguments],
        "env": env_entries(export_input, kubernetes, variables),
        "numNodes": hardware.nodes,
        "numProcPerNode": hardware.per_node,
    }
    if resources := node_resources(export_input, kubernetes):
        trainer["resourcesPerNode"] = resources
    return trainer


def _node_patch(export_input: ExportInput, kubernetes: Kubernetes) -> dict[str, Any]:
    spec = {
        "terminationGracePeriodSeconds": export_input.site.grace,
        **pod_placement(kubernetes),
        "volumes": pod_volumes(kubernetes),
        "containers": [{"name": REPLICATED_JOB, "volumeMounts": volume_mounts(kubernetes)}],
    }
    pod = pod_metadata(kubernetes) | {"spec": spec}
    return {"name": REPLICATED_JOB, "template": {"spec": {"template": pod}}}
