"""How a record of fields becomes one text."""

from typing import Any

from sweepcp.config.template import PLACE, template_keys


def render_record(template: str, record: dict[str, Any]) -> str:
    """The record as text; a line with a key that is missing, null or empty vanishes, empty lines do not pile up.

    Lists are joined by commas, mappings become `name: value` pairs, numbers stand as in the record.
    """
    lines: list[str] = []
    for line in template.strip("\n").split("\n"):
        values = {key: _format_value(_look_up(record, key)) for key in template_keys(line)}
        if all(values.values()) and (line.strip() or (lines and lines[-1])):
            lines.append(
                PLACE.sub(
                    lambda m, v=values: m.group(0)[0] if m.group(1) is None else v[m.group(1)], line
                )
            )  # type: ignore[misc]
    return "\n".join(lines).strip()


def _look_up(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
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
