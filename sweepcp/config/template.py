"""TODO config.template."""

import re
from typing import Annotated

from pydantic import AfterValidator

PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
KEY = re.compile(r"^[^\s{}.]+(\.[^\s{}.]+)*$")


def _check_template(template: str) -> str:
    rest = PLACE.sub("", template)
    if "{" in rest or "}" in rest:
        raise ValueError(
            "braces come in pairs, around a key; fix: write {{ or }} for a brace in the text"
        )
    keys = template_keys(template)
    bad = [key for key in keys if not KEY.match(key)]
    if bad:
        raise ValueError(
            f"{{{bad[0]}}} is no key of a record; fix: write {{key}}, or {{key.inner}} for a nested one"
        )
    if not keys:
        raise ValueError("a template holds at least one {key}; fix: write {title}, say")
    return template


Template = Annotated[str, AfterValidator(_check_template)]
"""Lines with `{key}` or `{key.inner}`; `{{` and `}}` are braces."""


def template_keys(template: str) -> list[str]:
    """The keys of a template, in order."""
    return [key for key in (m.group(1) for m in PLACE.finditer(template)) if key is not None]
