"""Records: the JSON files that the program itself writes."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sweepcp.errors import InvalidInput

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base of everything that the program writes.

    Unknown keys are refused, so that a file of a newer version is not misread.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_record(record_type: type[R], path: Path, *, fix: str) -> R:
    """Read a JSON file into its record type.

    Args:
        record_type: The type of the record in the file.
        path: The file.
        fix: What the user can do if the file cannot be read: restore, remove or rebuild it.

    Raises:
        InvalidInput: The file is missing, truncated or corrupt, or of another version of sweepcp.
    """
    try:
        return record_type.model_validate_json(path.read_bytes())
    except OSError as error:
        found = str(error.strerror)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        found = f"{key}: {problem['msg']}" if key else problem["msg"]
        if key == "format":
            found = f"format {problem['input']}"
    raise InvalidInput(
        file=path,
        key="the record",
        found=found,
        rule="a complete record of this version of sweepcp",
        fix=fix,
    )
