"""Values of records: how they are parsed from JSON, found by a key, and written as text.

The same record gives the same text in every format. Formats of text keep the digits of a number as
they are written; typed formats give the shortest decimal that stands for the number in its type.
"""

import json
import math
from collections import Counter
from datetime import date, time
from decimal import Decimal
from typing import Any

from sweepcp.errors import InvalidInput

MAX_EXPONENT = 400
"""A number with a larger power of ten is not written out; those of float64 are all smaller."""
MAX_DEPTH = 64
"""Lists and mappings in each other, beyond which a value is not written as text."""
KINDS = {
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
    str: "text",
}


class WrittenNumber(str):
    """A number of a JSON text, as it is written there."""

    __slots__ = ()


def parse_written_json(text: str) -> Any:
    """Parse JSON; numbers become `WrittenNumber`, but NaN and infinities become floats.

    Raises:
        ValueError: The text is not JSON, or an object has a key twice.
        RecursionError: It is nested too deeply.
    """
    return _DECODER.decode(text)


def make_object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dict; raise `ValueError` if a key occurs twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated!r} occurs twice")
    return record


def is_missing(value: Any) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def look_up(record: dict[str, Any], key: str) -> Any:
    """Return the value of a key, None if there is none.

    A dot in the key is part of a name or leads into a nested object. The longest name that leads to
    a value counts, so a column `meta.title` goes before the `title` of an object `meta`.
    """
    value = record.get(key)
    if not is_missing(value):
        return value
    name = key
    while "." in name:
        name = name.rpartition(".")[0]
        inner = record.get(name)
        if isinstance(inner, dict):
            value = look_up(inner, key[len(name) + 1 :])
            if value is not None:
                return value
    return None


def format_value(value: Any, depth: int = 0) -> str:
    """Return a value as text, empty if it is missing.

    Args:
        value: The value.
        depth: Number of lists and mappings that it is in.

    Raises:
        InvalidInput: The value has no text: an infinite or huge number, bytes that are not UTF-8,
            a type such as a duration, or many nested lists.
    """
    if isinstance(value, str):
        text = value.strip()
        return _write_out(text) if isinstance(value, WrittenNumber) else text
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        raise _unprintable_number(str(value))
    if isinstance(value, float | Decimal):
        return _write_out(str(value))
    if isinstance(value, dict | list | tuple):
        return _format_items(value, depth + 1)
    if isinstance(value, bytes):
        return decode_utf8(value).strip()
    # A datetime is a date, too.
    if isinstance(value, date | time):
        return value.isoformat()
    raise InvalidInput(
        found=f"a value of type {type(value).__name__}",
        rule="text, a number, a boolean, a date or time, or a list or mapping of these",
        fix="convert it to text, or remove it from the template",
    )


def decode_utf8(content: bytes) -> str:
    """Decode UTF-8; raise `InvalidInput` for other bytes."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            found=str(error), rule="UTF-8 text", fix="convert the text to UTF-8"
        ) from None


def describe_kind(value: Any) -> str:
    """Return what a value is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, WrittenNumber):
        return "a number"
    return "NaN" if is_missing(value) else KINDS.get(type(value), type(value).__name__)


def _format_items(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise InvalidInput(
            found=f"more than {MAX_DEPTH} lists or mappings in each other",
            rule="values that can be written as a line of text",
            fix="name an inner value in the template, or correct the record",
        )
    texts: list[str] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            text = format_value(inner, depth)
            texts.append(f"{format_value(name, depth)}: {text}" if text else "")
    else:
        texts = [format_value(inner, depth) for inner in value]
    return ", ".join(filter(None, texts))


def _write_out(number: str) -> str:
    """Return a number without an exponent, its digits as they are written."""
    _, letter, exponent = number.upper().partition("E")
    if not letter:
        return number
    power = exponent.lstrip("+-0") or "0"
    if len(power) > 3 or int(power) > MAX_EXPONENT:
        raise _unprintable_number(number)
    return format(Decimal(number), "f")


def _unprintable_number(number: str) -> InvalidInput:
    return InvalidInput(
        found=number,
        rule=f"a finite number, with an exponent of at most {MAX_EXPONENT}",
        fix="correct the number, or write null for a missing one",
    )


_DECODER = json.JSONDecoder(
    parse_float=WrittenNumber,
    parse_int=WrittenNumber,
    parse_constant=float,
    object_pairs_hook=make_object,
)
