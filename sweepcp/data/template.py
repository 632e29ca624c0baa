"""How a record of fields becomes one text."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator

PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
KEY = re.compile(r"^[^\s{}.]+(\.[^\s{}.]+)*$")


def _check(template: str) -> str:
    rest = PLACE.sub("", template)
    if "{" in rest or "}" in rest:
        raise ValueError("braces come in pairs, around a key; fix: write {{ or }} for a brace in the text")
    keys = places(template)
    bad = [key for key in keys if not KEY.match(key)]
    if bad:
        raise ValueError(f"{{{bad[0]}}} is no key of a record; fix: write {{key}}, or {{key.inner}} for a nested one")
    if not keys:
        raise ValueError("a template holds at least one {key}; fix: write {title}, say")
    return template


Template = Annotated[str, AfterValidator(_check)]
"""Lines with `{key}` or `{key.inner}`; `{{` and `}}` are braces."""


def places(template: str) -> list[str]:
    """The keys of a template, in order."""
    return [key for key in (m.group(1) for m in PLACE.finditer(template)) if key is not None]


def render(template: str, record: dict[str, Any]) -> str:
    """The record as text; a line with a key that is missing, null or empty vanishes, empty lines do not pile up.

    Lists are joined by commas, mappings become `name: value` pairs, numbers stand as in the record.
    """
    lines: list[str] = []
    for line in template.strip("\n").split("\n"):
        values = {key: _show(_look_up(record, key)) for key in places(line)}
        if all(values.values()) and (line.strip() or (lines and lines[-1])):
            lines.append(PLACE.sub(lambda m, v=values: m.group(0)[0] if m.group(1) is None else v[m.group(1)], line))  # type: ignore[misc]
    return "\n".join(lines).strip()


def _look_up(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        pairs = ((name, _show(inner)) for name, inner in value.items())
        return ", ".join(f"{name}: {text}" for name, text in pairs if text)
    if isinstance(value, list | tuple):
        return ", ".join(text for text in map(_show, value) if text)
    return str(value).strip()
