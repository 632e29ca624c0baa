"""JSON values: their canonical text, digests and differences."""

import hashlib
import json
from typing import Any


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
