"""Records of fields as text, by a template."""

import re
from typing import Any

from sweepcp.config.template import PLACEHOLDER, template_keys


def render_record(template: str, record: dict[str, Any]) -> str:
    """Return a record as text.

    A line with a key that is missing, null or empty is left out, and so is an empty line after
    another. The items of a list are separated by commas, a mapping becomes `name: value` pairs, and
    numbers are written as in the record.
    """
    lines: list[str] = []
    for line in template.strip("\n").split("\n"):
        values = {key: _format_value(_look_up(record, key)) for key in template_keys(line)}
        is_complete = all(values.values())
        is_repeated_blank = not line.strip() and not (lines and lines[-1])
        if is_complete and not is_repeated_blank:
            lines.append(_fill_line(line, values))
    return "\n".join(lines).strip()


def _fill_line(line: str, values: dict[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        key = match.group(1)
        # A match without a key is `{{` or `}}`, which is one brace.
        return match.group(0)[0] if key is None else values[key]

    return PLACEHOLDER.sub(fill, line)


def _look_up(record: dict[str, Any], key: str) -> Any:
    """Return the value of a key, or of a dotted path; None if there is none."""
    if key in record:
        return record[key]
    value: Any = record
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        pairs = ((name, _format_value(inner)) for name, inner in value.items())
        return ", ".join(f"{name}: {text}" for name, text in pairs if text)
    if isinstance(value, list | tuple):
        return ", ".join(text for text in map(_format_value, value) if text)
    return str(value).strip()
