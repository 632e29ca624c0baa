"""Validation of what people write, with errors that name the line, the key and the fix."""

import difflib
import json
import re
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sweepcp.config.safe_text import SecretFound
from sweepcp.config.yaml_files import line_of
from sweepcp.config.yaml_values import DOCUMENT, KeyPath, is_number
from sweepcp.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)
PERCENT = re.compile(r"[0-9._]+ ?%")
COUNT = re.compile(r"[0-9._]+ ?[A-Za-z]{1,3}")
"""Numbers as people write them elsewhere: 10k, 4 MB, 1B."""
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
    refused_keys: ClassVar[dict[str, tuple[str, str]]] = {}
    """Unknown keys that people may expect here → the rule that they break, and the fix."""


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
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = [
            problem
            for problem in error.errors(include_url=False)
            # A default that depends on another field, which is among the problems itself.
            if problem["type"] != "default_factory_not_called"
        ]
    raise _invalid_input(model, problems, content, file)


def _invalid_input(
    model: type[BaseModel], problems: list[ErrorDetails], content: Any, file: object
) -> InvalidInput:
    problem = min(problems, key=lambda candidate: candidate["type"] != "extra_forbidden")
    path = _path_in_content(problem, content)
    line = line_of(file, path) if isinstance(file, Path) else None
    same = [other for other in problems if _path_in_content(other, content) == path]
    rule, fix = _rule_and_fix(model, problem, path)
    if len(same) > 1 and all(other["type"] in RULES for other in same):
        # A union has a problem for each of its types.
        rule = " or ".join(dict.fromkeys(map(describe_rule, same)))
    if len(same) < len(problems):
        fix += f" ({len(problems) - len(same)} more after this one)"
    return InvalidInput(
        file=f"{file}:{line}" if line else file,
        key=_format_key(path),
        found=_shown_value(problem),
        rule=rule,
        fix=fix,
    )


def _shown_value(problem: ErrorDetails) -> Any:
    """Return the value that a message shows: none where it is missing, and no secret."""
    if problem["type"] == "missing":
        return None
    if isinstance(problem.get("ctx", {}).get("error"), SecretFound):
        return "(not shown)"
    return problem["input"]


def _path_in_content(problem: ErrorDetails, content: Any) -> KeyPath:
    """Return the keys of a problem, without the tags and names that pydantic puts among them."""
    path: list[int | str] = []
    for number, key in enumerate(problem["loc"], start=1):
        is_missing = problem["type"] == "missing" and number == len(problem["loc"])
        has_key = isinstance(content, dict) and key in content
        has_index = isinstance(content, list) and isinstance(key, int) and key < len(content)
        if is_missing or has_key or has_index:
            path.append(key)
            content = None if is_missing else content[key]
    return tuple(path)


def _rule_and_fix(model: type[BaseModel], problem: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    kind, message, value = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        return _unknown_key(model, path)
    if kind == "missing":
        if isinstance(path[-1], int):
            return f"a list with {path[-1] + 1} or more items", "add the missing item"
        return "a required key", f"add `{_format_key(path)}: ...`"
    if kind in ("float_type", "int_type") and _is_quoted_number(value):
        return "a number, not text", f"write `{path[-1]}: {value}` without quotes"
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return "an integer", f"write `{path[-1]}: {int(value)}`"
    if kind in ("float_type", "int_type") and isinstance(value, str) and PERCENT.fullmatch(value):
        return describe_rule(problem), f"write {value} as a fraction or a count, without `%`"
    if kind in ("float_type", "int_type") and isinstance(value, str) and COUNT.fullmatch(value):
        return describe_rule(problem), f"write {value} in digits, without a unit: 10_000 for 10k"
    if kind == "literal_error" and isinstance(value, str):
        return describe_rule(problem), _suggest_choice(problem, value)
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
    return isinstance(value, str) and is_number(value)


def _unknown_key(model: type[BaseModel], path: KeyPath) -> tuple[str, str]:
    models = _models_at(model, path[:-1])
    for refusing in models:
        refused = getattr(refusing, "refused_keys", {})
        if path[-1] in refused:
            rule, fix = refused[path[-1]]
            return rule, fix
    return "unknown key", _suggest_key(models, path)


def _suggest_key(models: list[type[BaseModel]], path: KeyPath) -> str:
    names = [name for model in models for name in model.model_fields]
    if path[-1] in names:
        # Of another type of the union: an axis with `choices` has no `low`.
        return "remove it: it excludes keys that are beside it"
    similar = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f"did you mean `{similar[0]}`?" if similar else f"use one of: {', '.join(names)}"


def _suggest_choice(problem: ErrorDetails, value: str) -> str:
    choices = re.findall("'([^']*)'", problem["ctx"]["expected"])
    similar = difflib.get_close_matches(value.lower().strip(), choices, n=1)
    return f"did you mean `{similar[0]}`?" if similar else "use one of them"


def _format_key(path: KeyPath) -> str:
    return ".".join(str(key) for key in path) or DOCUMENT


def _models_at(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """Return the models that a schema has at `path`, following lists and optional sections."""
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
    return [candidate for candidate in candidates if _is_model(candidate)]


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation such as `tuple[Source, ...] | None` is built from."""
    arguments = typing.get_args(annotation)
    if not arguments:
        return {annotation}
    return set().union(*map(_plain_types, arguments))
