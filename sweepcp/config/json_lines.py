"""Reading of JSONL files that people write: exclude lists and labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sweepcp.config.validation import ConfigModel, validate
from sweepcp.errors import InvalidInput, located
from sweepcp.util.json_values import parse_json
from sweepcp.util.paths import read_input_file

M = TypeVar("M", bound=ConfigModel)


def read_valid_lines(path: Path, model: type[M], *, fix: str) -> Iterator[tuple[str, M]]:
    """Read a file with one object per line; blank lines are skipped.

    Args:
        path: The file.
        model: What every line must be.
        fix: What to do about a line that is no JSON.

    Yields:
        File and number of a line, for messages, and its content.

    Raises:
        InvalidInput: The file cannot be read, is not UTF-8, or a line is not valid.
    """
    with located(path, "the file"):
        lines = read_input_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, model.model_validate_json(line)
        except ValidationError:
            yield place, validate(model, _parse_line(line, place, fix), place)


def _parse_line(line: bytes, place: str, fix: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        is_text = _is_utf8(line)
        raise InvalidInput(
            file=place,
            key="the line",
            found=line.decode(errors="backslashreplace"),
            rule=f"a JSON object ({error})" if is_text else "UTF-8 text",
            fix=fix if is_text else "save the file as UTF-8",
        ) from None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
