"""Types of single values that several schemas share."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit hash: what a branch or tag names may change, a commit does not."""
Role = Literal["domain", "general"]
"""What a source or a suite represents: the domain, or general text that must not be forgotten."""
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]
"""A name that is also safe as a file name."""
HUB_ID = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")


def is_hub_id(name: str) -> bool:
    """Return whether a repository of a hub can have this name."""
    is_plain = HUB_ID.fullmatch(name) and not name.endswith(("-", ".", ".git"))
    return bool(is_plain) and len(name) <= 96 and ".." not in name and "--" not in name


def _check_hub_id(name: str) -> str:
    if not is_hub_id(name):
        raise ValueError(
            "the id of a repository, such as HuggingFaceTB/SmolLM2-135M; fix: correct the id"
        )
    return name


Attention = Literal["auto", "flash_attention_2", "varlen", "sdpa", "eager"]
"""Implementation of attention: as transformers names it, and `varlen` for PyTorch's own kernel for
sequences of several lengths. `auto`: on a GPU in bf16 the first that is installed and that the
model supports, of flash_attention_2, varlen and sdpa; on a CPU varlen for isolated documents in
sequences of 512 tokens or more, there document by document; elsewhere sdpa."""
ScoringMode = Literal["shared", "exact"]
"""How the answers of lm-eval tasks are computed: `exact` is lm-eval's own computation, bit for bit;
`shared` computes a context once for all of its answers."""
HubId = Annotated[str, AfterValidator(_check_hub_id)]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", max_length=128)]
"""A commit, tag or branch."""
PositiveInt = Annotated[int, Field(ge=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WarmupFraction = Annotated[float, Field(ge=0, lt=1)]
"""A share of the steps. Below 1, so that a run reaches the end of its schedule."""
DecayRate = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""
