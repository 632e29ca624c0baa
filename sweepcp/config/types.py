"""Types of single values that several schemas share."""

import re
from typing import Annotated, Literal

from pydantic import Field

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit hash: what a branch or tag names may change, a commit does not."""
Role = Literal["domain", "general"]
"""What a source or a suite represents: the domain, or general text that must not be forgotten."""
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that is also safe as a file name."""
PositiveInt = Annotated[int, Field(ge=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WarmupFraction = Annotated[float, Field(ge=0, lt=1)]
"""A share of the steps. Below 1, so that a run reaches the end of its schedule."""
