"""Types of text that may be written into exported files.

They are allow-lists: what matches needs no escaping in any of the formats that are exported.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

from sweepcp.errors import InvalidInput

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
PATH_PATTERN = re.compile(r"/[A-Za-z0-9_.@+=,/-]*")
HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
KUBERNETES_NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123 that begins with a letter, as services and job sets require (RFC 1035)."""
IMAGE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
ENVIRONMENT_VALUE_PATTERN = re.compile(r"[A-Za-z0-9_.:/,=@%+-]*")
ENVIRONMENT_NAME_PATTERN = re.compile(r"[A-Z_][A-Z0-9_]*")
SLURM_TIME_PATTERN = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}")
SECRET_PATTERN = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{16,}\.[\w-]{16,}|-----BEGIN"
)
"""How tokens of hubs, clouds, forges and trackers, JSON web tokens and private keys begin."""
SECRET_NAME_PATTERN = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
)


def refuse_secret(text: str) -> None:
    """Raise `InvalidInput` if a text holds what looks like a token or a private key.

    The message does not repeat the secret.
    """
    if match := SECRET_PATTERN.search(text):
        raise InvalidInput(
            found=f"{match.group()[:4]}… ({len(text)} characters)",
            rule="no secret is ever written into a file",
            fix="remove it, revoke it, and name its environment variable instead",
        )


def _matching(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{rule}; fix: use only what matches {pattern.pattern}")
        if ".." in text.split("/"):
            raise ValueError(f"{rule}, without `..`; fix: write the path that is meant")
        if SECRET_PATTERN.search(text):
            raise ValueError(
                "no secret is ever written; fix: name its environment variable under `secrets`"
            )
        return text

    return AfterValidator(check)


PlainName = Annotated[str, _matching(NAME_PATTERN, "a name of letters, digits, `_`, `.` and `-`")]
KubernetesName = Annotated[
    str,
    _matching(
        KUBERNETES_NAME_PATTERN,
        "a Kubernetes name: at most 63 of a-z, 0-9 and `-`, beginning with a letter",
    ),
]
AbsolutePath = Annotated[
    str, _matching(PATH_PATTERN, "an absolute path of letters, digits and `_.@+=,-`")
]
ContainerImage = Annotated[str, _matching(IMAGE_PATTERN, "the name of a container image")]
EnvironmentValue = Annotated[
    str, _matching(ENVIRONMENT_VALUE_PATTERN, "a value of letters, digits and `_.:/,=@%+-`")
]
EnvironmentName = Annotated[
    str, _matching(ENVIRONMENT_NAME_PATTERN, "the name of an environment variable, in capitals")
]
SlurmTime = Annotated[
    str, _matching(SLURM_TIME_PATTERN, "a time as Slurm writes it, such as 7-00:00:00")
]
