"""Types that the schemas of several files share."""

from typing import Annotated, Literal

from pydantic import Field

Role = Literal["domain", "general"]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
