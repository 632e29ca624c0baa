"""TODO util.json_values."""

import hashlib
import json
from typing import Any


def json_differences(before: dict[str, Any], now: dict[str, Any], key: str = "") -> list[str]:
    """The keys in which two JSON values differ, as `key: before → now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(k for k in now if k not in before)]
        found = [
            json_differences(before.get(k), now.get(k), f"{key}.{k}" if key else k) for k in keys
        ]  # type: ignore[arg-type]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{key}: {json.dumps(before)} → {json.dumps(now)}"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities raise `ValueError`."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]
