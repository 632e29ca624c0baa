"""Templates that turn a record of fields into text: their syntax."""

import functools
import re
from typing import Annotated

from pydantic import AfterValidator

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
"""A key in braces, which is group 1, or an escaped brace, which has no group 1."""
NAME = r'[^\s{}."]+( [^\s{}."]+)*'
"""A name, which may consist of words. JSON in a template has quotes; its braces are no keys."""
KEY_PATTERN = re.compile(rf"{NAME}(\.{NAME})*")


@functools.cache
def template_keys(template: str) -> tuple[str, ...]:
    """Return the keys of a template or of one of its lines, each once, in order."""
    keys = [match.group(1) for match in PLACEHOLDER.finditer(template)]
    return tuple(dict.fromkeys(key for key in keys if key is not None))


def _check_template(template: str) -> str:
    without_placeholders = PLACEHOLDER.sub("", template)
    if "{" in without_placeholders or "}" in without_placeholders:
        raise ValueError(
            "braces come in pairs, around a key; fix: write {{ or }} for a brace in the text"
        )
    keys = template_keys(template)
    for key in keys:
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(
                f"{{{key}}} is no key of a record; "
                "fix: write {key}, or {key.inner} for a nested one"
            )
    if not keys:
        raise ValueError("a template holds at least one {key}; fix: add one, such as {title}")
    return template


Template = Annotated[str, AfterValidator(_check_template)]
"""Lines with `{key}` or `{key.inner}`; `{{` and `}}` are braces."""
