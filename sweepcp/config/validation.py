"""Files that people write: YAML read safely and strictly, and errors that say what to type instead."""

import difflib
import json
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sweepcp.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)


class ConfigModel(BaseModel):
    """Base of everything that is read from a file: unknown keys and wrong types are errors, instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def validate(model: type[M], content: Any, where: object) -> M:
    """`content` as a `model`; `BadInput` for the first violation, with the key's path and a near name if any."""
    try:
        return model.model_validate_json(
            json.dumps(content, default=str)
        )  # JSON mode: strict, yet lists become tuples
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise _invalid_input(model, content, problems, where) from None


def _invalid_input(
    model: type[BaseModel], content: Any, problems: list[Any], where: object
) -> InvalidInput:
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    loc = tuple(
        part for part in first["loc"] if not str(part).startswith(("function-", "<"))
    )  # tags are not keys
    key = ".".join(str(part) for part in loc) or "the document"
    kind, message, value = first["type"], first["msg"], first["input"]
    at = f"{where}:{line}" if (line := _line_of(where, loc)) else where
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    if kind == "extra_forbidden":
        known = _known_fields(model, content, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"use one of: {', '.join(known)}"
        return InvalidInput(file=at, key=key, found=value, rule="unknown key", fix=fix + more)
    if kind == "missing":
        return InvalidInput(
            file=at, key=key, found=None, rule="a required key", fix=f"add `{key}: ...`" + more
        )
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        return InvalidInput(
            file=at,
            key=key,
            found=value,
            rule="a number, not text",
            fix=f"write `{loc[-1]}: {value}` without quotes" + more,
        )
    if kind == "value_error":
        rule, _, fix = message.removeprefix("Value error, ").partition("; fix: ")
        return InvalidInput(
            file=at, key=key, found=value, rule=rule, fix=(fix or "change the value") + more
        )
    return InvalidInput(
        file=at,
        key=key,
        found=value,
        rule=message[0].lower() + message[1:],
        fix="change the value to one that the rule allows" + more,
    )


def _known_fields(model: Any, content: Any, loc: tuple[Any, ...]) -> list[str]:
    """The names that the schema knows at `loc`, following lists and optional sections."""
    here: set[Any] = {model}
    for part in loc:
        step: set[Any] = set()
        for candidate in here:
            if (
                isinstance(candidate, type)
                and issubclass(candidate, BaseModel)
                and part in candidate.model_fields
            ):
                step |= _model_types(candidate.model_fields[str(part)].annotation)
            else:
                step.add(candidate)
        here = step
    return [
        n for m in here if isinstance(m, type) and issubclass(m, BaseModel) for n in m.model_fields
    ]


def _model_types(annotation: Any) -> set[Any]:
    inner = typing.get_args(annotation)
    return set().union(*map(_model_types, inner)) if inner else {annotation}


def _line_of(where: object, loc: tuple[Any, ...]) -> int | None:
    """The line on which a key stands in the file `where`, if it stands there (an override does not)."""
    path = Path(str(where))
    if not path.is_file():
        return None
    node, line = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pairs = [(k, v) for k, v in node.value if k.value == str(part)]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            pairs = [(node.value[part], node.value[part])]
        else:
            pairs = []
        if not pairs:
            return line
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line
