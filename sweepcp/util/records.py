"""Records: the JSON files that the program itself writes, and the one way to read them."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sweepcp.errors import InvalidInput
from sweepcp.util.json_values import check_unambiguous, may_have_long_integer, parse_json

R = TypeVar("R", bound="Record")
READABLE = "a file that can be read"
COMPLETE = "a complete record of this version of sweepcp"


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
    content = read_bytes(path, fix=fix)
    try:
        record = record_type.model_validate_json(content, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    else:
        try:
            if not _is_unambiguous(record, content):
                check_unambiguous(content)
        except ValueError as error:
            raise _damaged(path, str(error), COMPLETE, fix) from None
        return record
    raise _invalid_record(path, problem, fix)


def _is_unambiguous(record: Record, content: bytes) -> bool:
    """Return whether JSON surely passes `check_unambiguous`, which parses it a second time.

    Args:
        record: What the JSON was parsed into.
        content: The JSON.

    Returns:
        False where it is not sure.
    """
    if b"\\u" in content or may_have_long_integer(content):
        return False
    # A key that occurs twice has a colon that the record has not. In the JSON of a record, `null`
    # stands for what is not finite, too.
    written = record.model_dump_json(exclude_unset=True).encode()
    return all(content.count(sign) == written.count(sign) for sign in (b":", b"null"))


def read_json(path: Path, *, fix: str, finite: bool = True) -> Any:
    """Read a JSON file for which there is no record type.

    Args:
        path: The file.
        fix: What the user can do if the file cannot be read: restore, remove or rebuild it.
        finite: Refuse NaN and infinities.

    Raises:
        InvalidInput: The file is missing or truncated, or holds what is not JSON, see `parse_json`.
    """
    try:
        return parse_json(read_bytes(path, fix=fix), finite=finite)
    except ValueError as error:
        raise _damaged(path, str(error), "JSON", fix) from None


def read_json_object(path: Path, *, fix: str, finite: bool = True) -> dict[str, Any]:
    """Read a JSON file that holds an object, see `read_json`.

    Raises:
        InvalidInput: As of `read_json`, or the file holds a value of another type.
    """
    content = read_json(path, fix=fix, finite=finite)
    if not isinstance(content, dict):
        raise _damaged(path, content, "a JSON object", fix)
    return content


def read_json_lines(
    path: Path, *, fix: str, complete: bool = True, finite: bool = True
) -> Iterator[tuple[str, bytes, Any]]:
    """Read a file with one JSON value per line.

    Args:
        path: The file.
        fix: What the user can do if the file cannot be read.
        complete: Whether the last line must have its end. One that is being written has none, and
            is left out.
        finite: Refuse NaN and infinities.

    Yields:
        File and number of a line, for messages; the line; and its value.

    Raises:
        InvalidInput: The file is missing or truncated, or a line is not JSON, see `parse_json`.
    """
    check_file(path, fix=fix)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            if not line.endswith(b"\n"):
                if complete:
                    raise _damaged(place, "a line without its end", "complete lines", fix)
                return
            try:
                value = parse_json(line, finite=finite)
            except ValueError as error:
                raise _damaged(place, str(error), "JSON", fix) from None
            yield place, line, value


def read_record_lines(
    record_type: type[R], path: Path, *, fix: str, complete: bool = True
) -> list[R]:
    """Read a file with one record per line, see `read_json_lines`.

    Raises:
        InvalidInput: As of `read_json_lines`, or a line is not such a record.
    """
    records = []
    finite = not record_type.model_config.get("allow_inf_nan", True)
    for place, line, _ in read_json_lines(path, fix=fix, complete=complete, finite=finite):
        try:
            records.append(record_type.model_validate_json(line, strict=True))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise _invalid_record(place, problem, fix) from None
    return records


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def check_file(path: Path, *, fix: str) -> None:
    """Raise `InvalidInput` unless a path is a regular file that can be opened."""
    try:
        # Opening a named pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            found = "a folder" if path.is_dir() else "not a regular file"
            raise _damaged(path, found, READABLE, fix)
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, fix) from None


def read_bytes(path: Path, *, fix: str) -> bytes:
    """Read a file, see `check_file`."""
    check_file(path, fix=fix)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, fix) from None


def read_text(path: Path, *, fix: str) -> str:
    """Read a file of UTF-8 text, see `read_bytes`.

    Raises:
        InvalidInput: As of `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path, fix=fix).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error), "UTF-8 text", fix) from None


def _unreadable(path: Path, error: OSError | ValueError, fix: str) -> InvalidInput:
    if isinstance(error, FileNotFoundError):
        return _damaged(path, "missing", READABLE, fix)
    # A name with a null character is a ValueError.
    found = error.strerror if isinstance(error, OSError) else str(error)
    return _damaged(path, found, READABLE, fix)


def _damaged(path: object, found: object, rule: str, fix: str) -> InvalidInput:
    return InvalidInput(file=path, key="the file", found=found, rule=rule, fix=fix)


def _invalid_record(path: object, problem: ErrorDetails, fix: str) -> InvalidInput:
    """Return the error of a record that its type refuses."""
    kind, message = problem["type"], problem["msg"]
    if kind == "json_invalid":
        return _damaged(path, message, COMPLETE, fix)
    rule = message.removeprefix("Value error, ").removeprefix("Input should be ")
    rules = {"missing": "a required key", "extra_forbidden": "no such key"}
    return InvalidInput(
        file=path,
        key=".".join(str(part) for part in problem["loc"]) or "the record",
        found="missing" if kind == "missing" else problem["input"],
        rule=f"{rules.get(kind, rule[:1].lower() + rule[1:])}: {COMPLETE}",
        fix=fix,
    )
