"""Kubeflow Trainer: a TrainJob (trainer.kubeflow.org/v1alpha1), whose runtime starts torchrun's nodes."""

import yaml

from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers import kubernetes
from sweepcp.export.launchers.shell import process_environment, shutdown_timeout, torchrun_command

MANAGER = "sweepcp.export/job"


def write(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """`trainjob.yaml`. The runtime sets torchrun's number of nodes, rank and address by its PET_ variables."""
    site = kubernetes.settings(source)
    hardware = source.bundle.target.hardware
    python, *arguments = torchrun_command(source, handoff, ())
    trainer = {
        "image": site.image,
        "command": [python],
        "args": arguments,
        "env": kubernetes.variables(
            source, site, process_environment(source, handoff) | shutdown_timeout(source)
        ),
        "numNodes": hardware.nodes,
        "numProcPerNode": hardware.per_node,
    }
    if wanted := kubernetes.resources(source, site):
        trainer["resourcesPerNode"] = wanted
    pod = {
        "terminationGracePeriodSeconds": source.site.grace,
        "volumes": kubernetes.volumes(site),
        "containers": [{"name": "node", "volumeMounts": kubernetes.mounts(site)}],
    }
    node = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {
        "manager": MANAGER,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": source.job,
            "namespace": site.namespace,
            "annotations": kubernetes.about(source),
        },
        "spec": {
            "runtimeRef": {"name": site.runtime},
            "trainer": trainer,
            "runtimePatches": [patch],
        },
    }
    return {"trainjob.yaml": yaml.safe_dump(job, sort_keys=False, width=120)}


def how(source: ExportInput) -> str:
    """How it is started."""
    return f"kubectl apply -f {source.out}/trainjob.yaml"
