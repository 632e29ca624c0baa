"""Records of fields as text, by a template."""

import re
from collections.abc import Mapping
from typing import Any

from sweepcp.config.template import PLACEHOLDER, template_keys
from sweepcp.data.values import format_value, look_up
from sweepcp.errors import InvalidInput


def template_values(template: str, record: dict[str, Any]) -> dict[str, str]:
    """Return the text of each key of a template in a record, in order; empty if it is missing.

    Raises:
        InvalidInput: A value has no text; the key is that of the template.
    """
    values: dict[str, str] = {}
    for key in template_keys(template):
        try:
            values[key] = format_value(look_up(record, key))
        except InvalidInput as error:
            raise error.within("", key) from None
    return values


def render_template(template: str, values: Mapping[str, str]) -> str:
    """Return a template filled with the values of a record.

    A line with a key that is missing, null, NaN or empty is left out, and so is an empty line after
    another. The items of a list are separated by commas, and a mapping becomes `name: value` pairs.
    """
    lines: list[str] = []
    for line in template.strip("\n").split("\n"):
        is_complete = all(map(values.get, template_keys(line)))
        is_repeated_blank = not line.strip() and not (lines and lines[-1])
        if is_complete and not is_repeated_blank:
            lines.append(_fill_line(line, values))
    return "\n".join(lines).strip()


def _fill_line(line: str, values: Mapping[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        key = match.group(1)
        # A match without a key is `{{` or `}}`, which is one brace.
        return match.group(0)[0] if key is None else values[key]

    return PLACEHOLDER.sub(fill, line)
