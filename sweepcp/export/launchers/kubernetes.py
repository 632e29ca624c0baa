"""Pod settings shared by the launchers on Kubernetes."""

from typing import Any

from sweepcp.config.safe_text import KUBERNETES_NAME_PATTERN
from sweepcp.config.site import Kubernetes
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput
from sweepcp.export.launchers.shared_storage import check_shared_paths

SHARED_VOLUME = "shared"
SHM_VOLUME = "shm"


def require_kubernetes(export_input: ExportInput) -> Kubernetes:
    """Return the site's Kubernetes section, checked against the export.

    Raises:
        InvalidInput: The section or its Secret is missing, the job's name is not valid on
            Kubernetes, or a path is not on the mounted storage.
    """
    site = export_input.site
    if site.kubernetes is None:
        raise InvalidInput(
            key="kubernetes",
            found=None,
            rule="a launcher on Kubernetes needs an image and a volume",
            fix="add `kubernetes:` to a site file, and pass the file with --site",
        )
    if not KUBERNETES_NAME_PATTERN.fullmatch(export_input.job_name):
        raise InvalidInput(
            key="job" if site.job else "name",
            found=export_input.job_name,
            rule="a name of RFC 1123 and RFC 1035: "
            "at most 63 of a-z, 0-9 and `-`, beginning with a letter",
            fix="set `job:` in the site file",
        )
    if site.secrets and site.kubernetes.secret is None:
        raise InvalidInput(
            key="kubernetes.secret",
            found=None,
            rule="`secrets` are read from a Secret of the cluster",
            fix="set it to the name of a Secret that has a key for each of `secrets`",
        )
    check_shared_paths(export_input, site.kubernetes.mount)
    return site.kubernetes


def env_entries(
    export_input: ExportInput, kubernetes: Kubernetes, variables: dict[str, str]
) -> list[dict[str, Any]]:
    """Return a container's `env`: plain values, then references to the keys of the Secret."""
    entries: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in variables.items()
    ]
    for name in export_input.site.secrets:
        reference = {"secretKeyRef": {"name": kubernetes.secret, "key": name}}
        entries.append({"name": name, "valueFrom": reference})
    return entries


def node_resources(export_input: ExportInput, kubernetes: Kubernetes) -> dict[str, Any]:
    """Return requests and limits of the pod of a node; empty if nothing is stated."""
    amounts: dict[str, Any] = {}
    if kubernetes.cpus is not None:
        amounts["cpu"] = str(kubernetes.cpus)
    if kubernetes.memory is not None:
        amounts["memory"] = kubernetes.memory
    if export_input.on_gpu:
        amounts["nvidia.com/gpu"] = str(export_input.bundle.target.hardware.per_node)
    return {"requests": amounts, "limits": dict(amounts)} if amounts else {}


def pod_volumes(kubernetes: Kubernetes) -> list[dict[str, Any]]:
    """Return the volumes of a pod: the shared storage, and memory for NCCL and data loaders."""
    # Without a volume of its own, /dev/shm of a container has 64 MiB.
    return [
        {"name": SHARED_VOLUME, "persistentVolumeClaim": {"claimName": kubernetes.claim}},
        {"name": SHM_VOLUME, "emptyDir": {"medium": "Memory"}},
    ]


def volume_mounts(kubernetes: Kubernetes) -> list[dict[str, Any]]:
    """Return where a container mounts the volumes of `pod_volumes`."""
    return [
        {"name": SHARED_VOLUME, "mountPath": kubernetes.mount},
        {"name": SHM_VOLUME, "mountPath": "/dev/shm"},
    ]


def annotations(export_input: ExportInput) -> dict[str, str]:
    """Return annotations that identify recipe and bundle."""
    return {
        "sweepcp/recipe": export_input.bundle.recipe_id,
        "sweepcp/bundle": export_input.loaded.id,
    }
