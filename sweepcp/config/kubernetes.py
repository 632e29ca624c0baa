"""Section `kubernetes` of a site file: what pods of KubeRay and Kubeflow Trainer require."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sweepcp.config.safe_text import (
    KUBERNETES_LABEL_PATTERN,
    AbsolutePath,
    ContainerImage,
    IntegerAsText,
    Text,
    TextOrInteger,
    matches_text,
    valid_text,
)
from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel

SUBDOMAIN_PATTERN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
"""RFC 1123, as the names of most objects (`IsDNS1123Subdomain` of k8s.io/apimachinery)."""
KEY_PATTERN = re.compile(
    r"((?=[^/]{1,253}/)[a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
"""A key of labels and annotations (`IsQualifiedName` of k8s.io/apimachinery)."""
MAX_LABEL_VALUE = 63
LABEL_VALUE_PATTERN = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
"""`IsValidLabelValue` of k8s.io/apimachinery."""
RESOURCE_PATTERN = re.compile(
    r"(?=[^/]{1,253}/)[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
"""An extended resource, which has a domain; their amounts are integers."""
QUANTITY_PATTERN = re.compile(r"(?=.*[1-9])[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?")
"""A quantity of memory (k8s.io/apimachinery/pkg/api/resource), without m and exponents."""
MAX_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations of an object (`TotalAnnotationSizeLimitB` of k8s.io/apimachinery)."""
OWN_PREFIX = "sweepcp/"
"""Annotations of exports, which name recipe and bundle."""
GPU_RESOURCE = "nvidia.com/gpu"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

KubernetesName = Annotated[
    str,
    matches_text(
        SUBDOMAIN_PATTERN,
        "a Kubernetes name: at most 253 of a-z, 0-9, `-` and `.`, with a letter or digit at its "
        "begin and end",
    ),
]
QueueName = Annotated[
    KubernetesName,
    valid_text(
        lambda text: len(text) <= MAX_LABEL_VALUE,
        f"at most {MAX_LABEL_VALUE} characters, as the value of a label; fix: name another queue",
    ),
]
Namespace = Annotated[
    str,
    matches_text(
        KUBERNETES_LABEL_PATTERN,
        "a Kubernetes name: at most 63 of a-z, 0-9 and `-`, with a letter or digit at its begin "
        "and end",
    ),
]
Key = Annotated[
    str,
    matches_text(
        KEY_PATTERN,
        "a key of Kubernetes: at most 63 characters, with or without a `domain/` before",
    ),
]
LabelValue = Annotated[
    str,
    IntegerAsText,
    TextOrInteger,
    matches_text(
        LABEL_VALUE_PATTERN,
        "the value of a label of Kubernetes: at most 63 of letters, digits and `_.-`",
    ),
]
AnnotationValue = Annotated[Text, IntegerAsText, TextOrInteger]
Resource = Annotated[
    str, matches_text(RESOURCE_PATTERN, "an extended resource with its domain, such as rdma/ib")
]
Quantity = Annotated[
    str,
    IntegerAsText,
    TextOrInteger,
    matches_text(QUANTITY_PATTERN, "a quantity of Kubernetes, such as 1800Gi"),
]
MountPath = Annotated[
    AbsolutePath,
    valid_text(
        lambda path: ":" not in path and path.strip("/") not in ("", "dev/shm"),
        "a folder in a container, without `:`, and neither / nor /dev/shm; fix: name another",
    ),
]


class Toleration(ConfigModel):
    """A taint of nodes on which the pods may run, with the keys of Kubernetes."""

    key: Key | None = None
    """Key of the taint; without it, every taint is tolerated."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """`Exists` tolerates every value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; without it, every effect is tolerated."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds that a pod stays after a taint with the effect NoExecute was added."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        # As `ValidateTolerations` of kubernetes/pkg/apis/core/validation.
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("no value with the operator Exists; fix: remove `value`")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a key, or the operator Exists; fix: add `operator: Exists`")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            rule = "toleration_seconds only with the effect NoExecute"
            raise ValueError(f"{rule}; fix: remove it, or add `effect: NoExecute`")
        return self


class Kubernetes(ConfigModel):
    """Settings of jobs on a Kubernetes cluster with KubeRay or Kubeflow Trainer."""

    namespace: Namespace = "default"
    """Namespace of the job."""
    image: ContainerImage
    """Container image in which the trainer is installed."""
    image_pull_secrets: tuple[KubernetesName, ...] = ()
    """Secrets with which nodes get the image from its registry."""
    claim: KubernetesName
    """PersistentVolumeClaim that all nodes can mount and write.

    It holds the bundle, the token stores, the model and the run.
    """
    mount: MountPath
    """The path at which nodes mount it: the same as on the machine on which the bundle was made."""
    secret: KubernetesName | None = None
    """The Secret that holds `secrets`, with a key for each."""
    runtime: KubernetesName = "torch-distributed"
    """Training runtime of Kubeflow Trainer."""
    memory: Quantity | None = None
    """Memory per node, such as 1800Gi."""
    cpus: PositiveInt | None = None
    """CPUs per node."""
    resources: dict[Resource, PositiveInt] = Field(default_factory=dict)
    """Other resources per node, such as `rdma/ib: 8` or `vpc.amazonaws.com/efa: 32`. The GPUs are
    those of the target."""
    node_selector: dict[Key, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes on which the pods run."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes on which the pods may run."""
    labels: dict[Key, LabelValue] = Field(default_factory=dict)
    """Labels of the job and of its pods."""
    annotations: dict[Key, AnnotationValue] = Field(default_factory=dict)
    """Annotations of the job and of its pods, such as a network of Multus."""
    queue_name: QueueName | None = None
    """Local queue of Kueue, in which the job waits until it is admitted."""
    priority_class_name: KubernetesName | None = None
    """PriorityClass of the pods. A TrainJob cannot state one: its training runtime does."""

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if own := [key for key in self.annotations if key.startswith(OWN_PREFIX)]:
            raise ValueError(f"annotations.{own[0]} is set by the export; fix: remove it")
        if QUEUE_LABEL in self.labels:
            raise ValueError(f"labels.{QUEUE_LABEL} has a key; fix: set `queue_name` instead")
        if GPU_RESOURCE in self.resources:
            rule = f"resources.{GPU_RESOURCE} follows from the `hardware` of the target"
            raise ValueError(f"{rule}; fix: remove it")
        size = sum(len(key.encode() + text.encode()) for key, text in self.annotations.items())
        if size > MAX_ANNOTATIONS:
            raise ValueError("annotations of at most 256 KiB; fix: shorten them")
        return self
