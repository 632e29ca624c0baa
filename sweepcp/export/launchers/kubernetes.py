"""Pod settings shared by the launchers on Kubernetes."""

from typing import Any

from sweepcp.config.kubernetes import GPU_RESOURCE, QUEUE_LABEL, Kubernetes, Toleration
from sweepcp.config.safe_text import KUBERNETES_NAME_PATTERN
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput
from sweepcp.export.launchers.shared_storage import check_shared_paths

SHARED_VOLUME = "shared"
SHM_VOLUME = "shm"


def require_kubernetes(export_input: ExportInput, *, longest: int, because: str) -> Kubernetes:
    """Return the site's Kubernetes section, checked against the export.

    Args:
        export_input: What is exported.
        longest: Characters that the launcher allows in the name of a job.
        because: What the launcher makes from the name, for messages.

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
    if len(export_input.job_name) > longest:
        raise InvalidInput(
            key="job" if site.job else "name",
            found=f"{export_input.job_name} ({len(export_input.job_name)} characters)",
            rule=f"at most {longest} characters, {because}",
            fix="set a shorter `job:` in the site file",
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


def literal(text: str) -> str:
    """Return a text of which Kubernetes makes exactly this one.

    In `env`, `command` and `args` it replaces `$(NAME)`, and `$$` by `$`.
    """
    return text.replace("$", "$$")


def env_entries(
    export_input: ExportInput, kubernetes: Kubernetes, variables: dict[str, str]
) -> list[dict[str, Any]]:
    """Return a container's `env`: plain values, then references to the keys of the Secret."""
    entries: list[dict[str, Any]] = [
        {"name": name, "value": literal(value)} for name, value in variables.items()
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
        amounts[GPU_RESOURCE] = str(export_input.bundle.target.hardware.per_node)
    amounts |= {name: str(amount) for name, amount in kubernetes.resources.items()}
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


def job_metadata(export_input: ExportInput, kubernetes: Kubernetes) -> dict[str, Any]:
    """Return the metadata of the job, whose annotations identify recipe and bundle."""
    queue = {} if kubernetes.queue_name is None else {QUEUE_LABEL: kubernetes.queue_name}
    metadata: dict[str, Any] = {
        "name": export_input.job_name,
        "namespace": kubernetes.namespace,
        "annotations": {
            "sweepcp/recipe": export_input.bundle.recipe_id,
            "sweepcp/bundle": export_input.loaded.id,
        }
        | kubernetes.annotations,
    }
    if labels := kubernetes.labels | queue:
        metadata["labels"] = labels
    return metadata


def pod_metadata(kubernetes: Kubernetes) -> dict[str, Any]:
    """Return `metadata` of a pod template with the site's labels and annotations, if there are."""
    metadata = {"labels": kubernetes.labels, "annotations": kubernetes.annotations}
    given = {key: dict(value) for key, value in metadata.items() if value}
    return {"metadata": given} if given else {}


def pod_placement(kubernetes: Kubernetes) -> dict[str, Any]:
    """Return the parts of a pod's spec that state where it runs, and with which pull secrets."""
    spec: dict[str, Any] = {}
    if kubernetes.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    if kubernetes.node_selector:
        spec["nodeSelector"] = dict(kubernetes.node_selector)
    if kubernetes.tolerations:
        spec["tolerations"] = [_toleration(each) for each in kubernetes.tolerations]
    return spec


def _toleration(toleration: Toleration) -> dict[str, Any]:
    fields = toleration.model_dump(exclude_none=True)
    seconds = fields.pop("toleration_seconds", None)
    return fields if seconds is None else fields | {"tolerationSeconds": seconds}
