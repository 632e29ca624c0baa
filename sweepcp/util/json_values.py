"""JSON values: strict parsing, their canonical text, digests and differences."""

import hashlib
import json
import math
import re
from typing import Any, NoReturn

from pydantic_core import from_json

MAX_DIGITS = 308
"""Digits of an integer that can be a float, too."""
MAX_INTEGER = 1 << 63
"""Integers of records are below it in magnitude."""
SHAPES = bytes.maketrans(b"123456789\t\n\r[,:-", b"0" * 9 + b" " * 7)
"""Maps digits to 0, and what may stand before a number to a space."""
LONG_INTEGER = b" " + b"0" * 19
NUMBER_ARRAYS = re.compile(rb"\[[-+.0-9eE,\s]*\]")


def parse_json(content: bytes, *, finite: bool = True) -> Any:
    """Parse JSON strictly: most of what `json.loads` lets through is refused.

    Args:
        content: The text in UTF-8.
        finite: Refuse NaN and infinities, which Python writes and JSON does not have.

    Raises:
        ValueError: It is not UTF-8 or not JSON, has a surrogate without its pair, a number out of
            range or a key twice in one object, or is nested too deeply.
    """
    # This parser has a limit of depth, and refuses surrogates; the other one sees equal keys.
    from_json(content, allow_inf_nan=not finite)
    return json.loads(
        content.decode("utf-8"),
        object_pairs_hook=_unique_keys,
        parse_int=_parse_integer,
        parse_float=_parse_number,
    )


def check_unambiguous(content: bytes) -> None:
    """Raise `ValueError` if the JSON of a record has a key twice, or a number out of range."""
    # Arrays of numbers are most of a large file, have no keys, and are checked by its record type.
    json.loads(
        NUMBER_ARRAYS.sub(b"[]", content),
        object_pairs_hook=_unique_keys,
        parse_int=_parse_small_integer,
        parse_float=_parse_number,
        parse_constant=_reject_constant,
    )


def may_have_long_integer(content: bytes) -> bool:
    """Return whether JSON, or a text in it, may have an integer of as many digits as the limit."""
    return LONG_INTEGER in content.translate(SHAPES)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return content


def _parse_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits is out of range")
    return int(text)


def _parse_small_integer(text: str) -> int:
    number = _parse_integer(text)
    if abs(number) >= MAX_INTEGER:
        raise ValueError(f"the integer {text} is out of range")
    return number


def _parse_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; NaN and infinities raise `ValueError`."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def json_differences(*, before: Any, after: Any, key: str = "") -> list[str]:
    """Return the keys below `key` in which two JSON values differ, as `key: before → after`.

    In lists of as many mappings, the keys are the indices.
    """
    if _is_list_of_mappings(before) and _is_list_of_mappings(after) and len(before) == len(after):
        before, after = (dict(enumerate(items)) for items in (before, after))
    if not isinstance(before, dict) or not isinstance(after, dict):
        if before == after:
            return []
        return [f"{key}: {json.dumps(before)} → {json.dumps(after)}"]
    differences = []
    for name in dict.fromkeys([*before, *after]):
        inner_key = f"{key}.{name}" if key else name
        differences += json_differences(
            before=before.get(name), after=after.get(name), key=inner_key
        )
    return differences


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
