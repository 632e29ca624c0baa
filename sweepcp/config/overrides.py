"""Overrides of keys of an experiment from the command line: `--set budget.trials=8`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sweepcp.config.yaml_values import MAX_LEVELS, parse_yaml
from sweepcp.errors import SHOWN_CHARACTERS, InvalidInput


def parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=value`, with a value in YAML, into the dotted key and the value.

    Raises:
        InvalidInput: There is no key, a part of it is empty, or the value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or not key.isprintable() or len(parts) > MAX_LEVELS:
        raise InvalidInput(
            file="--set",
            key="--set",
            found=override,
            rule="key=value, such as budget.trials=8, with names between the points",
            fix="correct the key" if equals else "add the `=`",
        )
    return key, parse_yaml(text, _option(override), tuple(parts))


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of an experiment's content in place.

    Sections that are missing are added. Items of lists are addressed by index, or by their `name`.

    Raises:
        InvalidInput: A list has no such item, or a part of the key is a single value.
    """
    *parents, last = key.split(".")
    section: Any = content
    for depth, part in enumerate(parents, start=1):
        if isinstance(section, list):
            section = section[_item_index(section, part, key=key)]
        else:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
        if not isinstance(section, dict | list):
            raise InvalidInput(
                file=f"--set {key}",
                key=key,
                found=section,
                rule=f"a key of a section or list; {'.'.join(parents[:depth])} is a single value",
                fix="correct the key, or set the whole section to a mapping",
            )
    if isinstance(section, list):
        section[_item_index(section, last, key=key)] = value
    else:
        section[last] = value


@contextmanager
def attributed_to_overrides(overrides: Sequence[str], names: Sequence[object]) -> Iterator[None]:
    """Name the override, in place of the file, in an `InvalidInput` of a key that it has set.

    Args:
        overrides: `a.b=value`, in the order in which they were applied.
        names: The names of the experiment's sources, which stand for indices in keys.
    """
    try:
        yield
    except InvalidInput as error:
        found_at = _with_source_name(error.key, names)
        last_by_key = {override.partition("=")[0]: override for override in overrides}
        for key, override in last_by_key.items():
            set_at = _with_source_name(key, names)
            if _is_same_or_below(set_at, found_at) or _is_same_or_below(found_at, set_at):
                raise InvalidInput(
                    file=_option(override),
                    key=error.key,
                    found=error.found,
                    rule=error.rule,
                    fix=error.fix,
                ) from None
        raise


def _option(override: str) -> str:
    """Return an override as messages name it."""
    shown = override[:SHOWN_CHARACTERS]
    return f"--set {shown}" if shown == override else f"--set {shown}..."


def _with_source_name(key: str, names: Sequence[object]) -> list[str]:
    """Return the parts of a key, with the name of a source in place of its index."""
    parts = key.split(".")
    if parts[0] == "sources" and len(parts) > 1 and parts[1] in map(str, range(len(names))):
        parts[1] = str(names[int(parts[1])])
    return parts


def _is_same_or_below(key: list[str], other: list[str]) -> bool:
    return key[: len(other)] == other


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
        rule=f"an item of the list, by index or name: {', '.join(names)}"
        if names
        else "an item of the list, which is empty",
        fix="name one of them" if names else "set the whole list",
    )
