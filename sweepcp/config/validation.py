"""Validation of what people write, with errors that name the line, the key and the fix."""

import difflib
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sweepcp.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)
KeyPath = tuple[int | str, ...]
"""Keys of mappings and indices of lists, from the document down."""
BOUNDS = {
    "greater_than_equal": "{number} of at least {ge:g}",
    "greater_than": "{number} above {gt:g}",
    "less_than_equal": "{number} of at most {le:g}",
    "less_than": "{number} below {lt:g}",
}
"""Pydantic's errors of numeric constraints, as rules."""
RULES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "too_short": "a list with {min_length} or more items",
    "too_long": "a list with at most {max_length} items",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""Other errors of pydantic, as rules."""


class ConfigModel(BaseModel):
    """Base of everything that is read from a file that people write.

    Unknown keys and wrong types are errors, instances are frozen.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def validate(model: type[M], content: Any, file: object) -> M:
    """Return `content` as an instance of `model`.

    Args:
        model: What the content must be.
        content: The content of a YAML or JSON file.
        file: The file, or whatever else the content comes from, for messages.

    Raises:
        InvalidInput: For the first violation; an unknown key comes before all others, because a
            misspelled key is also a missing one.
    """
    try:
        # Strict mode accepts a list where a tuple is declared only if the input is JSON.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    raise _invalid_input(model, problems, file)


def _invalid_input(
    model: type[BaseModel], problems: list[ErrorDetails], file: object
) -> InvalidInput:
    problem = min(problems, key=lambda candidate: candidate["type"] != "extra_forbidden")
    # Pydantic puts the tags of unions and the names of validators among the keys.
    path = tuple(key for key in problem["loc"] if not str(key).startswith(("function-", "<")))
    line = _line_of(file, path)
    rule, fix = _rule_and_fix(model, problem, path)
    if len(problems) > 1:
        fix += f" ({len(problems) - 1} more after this one)"
    return InvalidInput(
        file=f"{file}:{line}" if line else file,
        key=_format_key(path),
        found=None if problem["type"] == "missing" else problem["input"],
        rule=rule,
        fix=fix,
    )


def _rule_and_fix(model: type[BaseModel], problem: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    kind, message, value = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        return "unknown key", _suggest_key(model, path)
    if kind == "missing":
        if isinstance(path[-1], int):
            return f"a list with {path[-1] + 1} or more items", "add the missing item"
        return "a required key", f"add `{_format_key(path)}: ...`"
    if kind in ("float_type", "int_type") and _is_quoted_number(value):
        return "a number, not text", f"write `{path[-1]}: {value}` without quotes"
    if kind == "value_error":
        # Validators of this package raise ValueError("<rule>; fix: <fix>").
        rule, _, fix = message.removeprefix("Value error, ").partition("; fix: ")
        return rule, fix or "change the value"
    return describe_rule(problem), "change the value to one that the rule allows"


def describe_rule(problem: ErrorDetails) -> str:
    """Return what a field allows, from an error of pydantic: "an integer of at least 1"."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in BOUNDS:
        # The bound has the type of the field.
        is_integer = all(isinstance(bound, int) for bound in context.values())
        return BOUNDS[kind].format(number="an integer" if is_integer else "a number", **context)
    if kind in RULES:
        return RULES[kind].format(**context)
    rule = problem["msg"].removeprefix("Input should be ")
    return rule[0].lower() + rule[1:]


def _is_quoted_number(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _suggest_key(model: type[BaseModel], path: KeyPath) -> str:
    names = _known_keys(model, path[:-1])
    similar = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f"did you mean `{similar[0]}`?" if similar else f"use one of: {', '.join(names)}"


def _format_key(path: KeyPath) -> str:
    return ".".join(str(key) for key in path) or "the document"


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that a schema knows at `path`, following lists and optional sections."""
    candidates: set[Any] = {model}
    for key in path:
        inner: set[Any] = set()
        for candidate in candidates:
            if _is_model(candidate) and key in candidate.model_fields:
                inner |= _plain_types(candidate.model_fields[key].annotation)
            else:
                # An index of a list: its items are of the types that are candidates already.
                inner.add(candidate)
        candidates = inner
    models = [candidate for candidate in candidates if _is_model(candidate)]
    return [name for candidate in models for name in candidate.model_fields]


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation such as `tuple[Source, ...] | None` is built from."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return {annotation}
    return set().union(*map(_plain_types, arguments))


def _line_of(file: object, path: KeyPath) -> int | None:
    """Return the line of the last key of `path` that occurs in a YAML file.

    None if `file` is no file, or if none of the keys occurs in it, as with an override.
    """
    yaml_file = Path(str(file))
    if not yaml_file.is_file():
        return None
    node = yaml.compose(yaml_file.read_text(encoding="utf-8"), yaml.SafeLoader)
    line = None
    for key in path:
        entry = _find_entry(node, key)
        if entry is None:
            return line
        start, node = entry
        line = start.start_mark.line + 1
    return line


def _find_entry(node: yaml.Node | None, key: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the node with which an entry begins, and the node of its value."""
    if isinstance(node, yaml.MappingNode):
        entries: Sequence[tuple[yaml.Node, yaml.Node]] = node.value
        return next((entry for entry in entries if entry[0].value == str(key)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None
