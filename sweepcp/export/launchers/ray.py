"""Ray: a script of Ray Train, and a RayJob of KubeRay that runs it on a cluster of its own."""

import json
from string import Template
from typing import Any

import yaml

from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.launchers import kubernetes
from sweepcp.export.launchers.shell import PORT, RESTARTS, process_environment

SCRIPT = Template("""\
import os
import runpy
import socket
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

COMMAND = $command


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
        if end.code:
            raise RuntimeError(f"{sys.argv[0]} ended with status {end.code}") from None


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
    trainer.fit()
""")


def write(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """`ray_train.py`, and `rayjob.yaml` where the site has Kubernetes."""
    hardware = source.bundle.target.hardware
    script = SCRIPT.substitute(
        command=json.dumps(list(handoff.command)),
        port=PORT,
        workers=hardware.world_size,
        gpu=source.on_gpu,
        job=json.dumps(source.job),
        storage=json.dumps(f"{source.out}/ray"),
        restarts=RESTARTS,
    )
    files = {"ray_train.py": script}
    if source.site.kubernetes is not None:
        files["rayjob.yaml"] = yaml.safe_dump(_job(source, handoff), sort_keys=False, width=120)
    return files


def how(source: ExportInput) -> str:
    """How it is started."""
    if source.site.kubernetes is not None:
        return f"kubectl apply -f {source.out}/rayjob.yaml"
    return f"{source.site.python} {source.out}/ray_train.py"


def _job(source: ExportInput, handoff: ExportPlan) -> dict[str, Any]:
    site, hardware = kubernetes.settings(source), source.bundle.target.hardware

    def pod(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        container: dict[str, Any] = {
            "name": name,
            "image": site.image,
            "env": kubernetes.variables(source, site, process_environment(source, handoff)),
            "volumeMounts": kubernetes.mounts(site),
        }
        if wanted:
            container["resources"] = wanted
        grace = source.site.grace
        volumes = kubernetes.volumes(site)
        return {
            "spec": {
                "terminationGracePeriodSeconds": grace,
                "containers": [container],
                "volumes": volumes,
            }
        }

    slots = {} if source.on_gpu else {"num-cpus": str(hardware.per_node)}
    cluster = {
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod("head", {})},
        "workerGroupSpecs": [
            {
                "groupName": "nodes",
                "replicas": hardware.nodes,
                "minReplicas": hardware.nodes,
                "maxReplicas": hardware.nodes,
                "rayStartParams": slots,
                "template": pod("node", kubernetes.resources(source, site)),
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": source.job,
            "namespace": site.namespace,
            "annotations": kubernetes.about(source),
        },
        "spec": {
            "entrypoint": f"{source.site.python} {source.out}/ray_train.py",
            "backoffLimit": RESTARTS,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": cluster,
        },
    }
