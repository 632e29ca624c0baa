"""What pods of all launchers on Kubernetes have in common."""

from typing import Any

from sweepcp.config.safe_text import KUBERNETES_NAME_PATTERN
from sweepcp.config.site import Kubernetes, below
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput

VOLUME = "shared"


def settings(source: ExportInput) -> Kubernetes:
    """The site's section. Raises `BadInput` without one, for a job's name that is none there, or paths not mounted."""
    site = source.site.kubernetes
    if site is None:
        rule = "a launcher on Kubernetes needs an image and a volume"
        raise InvalidInput(
            file=source.where,
            key="kubernetes",
            found=None,
            rule=rule,
            fix="add `kubernetes:` to the file, and name it by --site",
        )
    if not KUBERNETES_NAME_PATTERN.fullmatch(source.job):
        key = "job" if source.site.job else "name"
        rule = "a name of RFC 1123 and RFC 1035: at most 63 of a-z, 0-9 and `-`, beginning with a letter"
        raise InvalidInput(
            file=source.where,
            key=key,
            found=source.job,
            rule=rule,
            fix="set `job:` in the site file",
        )
    if source.site.secrets and site.secret is None:
        rule = "secrets come from a Secret of the cluster"
        raise InvalidInput(
            file=source.where,
            key="kubernetes.secret",
            found=None,
            rule=rule,
            fix="name it, with a key for each of `secrets`",
        )
    on_nodes(source, site.mount)
    return site


def on_nodes(source: ExportInput, mount: str) -> None:
    """Everything that the job reads and writes is on the storage that the nodes mount."""
    paths = {
        "--out": str(source.out),
        "the bundle": str(source.opened.path),
        "model.path": source.bundle.model.path,
    }
    paths |= {f"corpora.{c.name}.store": c.store for c in source.bundle.corpora}
    for key, path in paths.items():
        if path is not None:
            below(path, mount, source.where, key)


def variables(
    source: ExportInput, site: Kubernetes, values: dict[str, str]
) -> list[dict[str, Any]]:
    """`env` of a container: values, and references to the Secret's keys."""
    found: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in values.items()]
    secrets = {
        name: {"secretKeyRef": {"name": site.secret, "key": name}} for name in source.site.secrets
    }
    return found + [{"name": name, "valueFrom": place} for name, place in secrets.items()]


def resources(source: ExportInput, site: Kubernetes) -> dict[str, Any]:
    """Requests and limits of a node's pod."""
    wanted: dict[str, Any] = {}
    if site.cpus is not None:
        wanted["cpu"] = str(site.cpus)
    if site.memory is not None:
        wanted["memory"] = site.memory
    if source.on_gpu:
        wanted["nvidia.com/gpu"] = str(source.bundle.target.hardware.per_node)
    return {"requests": wanted, "limits": dict(wanted)} if wanted else {}


def volumes(site: Kubernetes) -> list[dict[str, Any]]:
    """The shared storage, and memory for NCCL and data loaders to share, of which a container has 64 MiB otherwise."""
    return [
        {"name": VOLUME, "persistentVolumeClaim": {"claimName": site.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def mounts(site: Kubernetes) -> list[dict[str, Any]]:
    """Where a container finds them."""
    return [{"name": VOLUME, "mountPath": site.mount}, {"name": "shm", "mountPath": "/dev/shm"}]


def about(source: ExportInput) -> dict[str, str]:
    """Annotations that say where an object comes from."""
    return {"sweepcp/recipe": source.bundle.recipe_id, "sweepcp/bundle": source.opened.id}
