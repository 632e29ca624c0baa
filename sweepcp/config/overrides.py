"""Overrides of keys of an experiment from the command line: `--set budget.trials=8`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sweepcp.config.yaml_files import parse_yaml
from sweepcp.errors import InvalidInput


def parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=value`, with a value in YAML, into the dotted key and the value.

    Raises:
        InvalidInput: There is no key, or the value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InvalidInput(
            file="--set",
            key="--set",
            found=override,
            rule="key=value, such as budget.trials=8",
            fix="add the `=`",
        )
    return key, parse_yaml(text, f"--set {override}")


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of an experiment's content in place.

    Sections that are missing are added. Items of lists are addressed by index, or by their `name`.

    Raises:
        InvalidInput: A list has no such item.
    """
    *parents, last = key.split(".")
    section: Any = content
    for part in parents:
        if isinstance(section, list):
            section = section[_item_index(section, part, key=key)]
        else:
            if not isinstance(section.get(part), dict | list):
                section[part] = {}
            section = section[part]
    if isinstance(section, list):
        section[_item_index(section, last, key=key)] = value
    else:
        section[last] = value


@contextmanager
def attributed_to_overrides(overrides: Sequence[str]) -> Iterator[None]:
    """Name the override, in place of the file, in an `InvalidInput` of a key that it has set."""
    try:
        yield
    except InvalidInput as error:
        last_by_key = {override.partition("=")[0]: override for override in overrides}
        for key, override in last_by_key.items():
            if _is_same_or_below(key, other=error.key) or _is_same_or_below(error.key, other=key):
                raise InvalidInput(
                    file=f"--set {override}",
                    key=error.key,
                    found=error.found,
                    rule=error.rule,
                    fix=error.fix,
                ) from None
        raise


def _is_same_or_below(key: str, *, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.")


def _item_index(items: list[Any], part: str, *, key: str) -> int:
    names = []
    for index, item in enumerate(items):
        name = str(item.get("name", index)) if isinstance(item, dict) else str(index)
        if part in (str(index), name):
            return index
        names.append(name)
    raise InvalidInput(
        file=f"--set {key}",
        key=key,
        found=part,
        rule=f"an item of the list, by index or name: {', '.join(names)}",
        fix="name one of them",
    )
