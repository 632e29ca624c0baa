"""TODO util.records."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything that the program writes: unknown keys are refused, so that a newer file is not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
