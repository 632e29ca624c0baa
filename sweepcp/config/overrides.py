"""TODO config.overrides."""

from typing import Any

from sweepcp.errors import InvalidInput


def _assign(content: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(content, list):
            content = _list_item(content, part, key)
        else:
            if not isinstance(content.get(part), (dict, list)):
                content[part] = {}
            content = content[part]
    if isinstance(content, list):
        content[content.index(_list_item(content, last, key))] = value
    else:
        content[last] = value


def _list_item(items: list[Any], part: str, key: str) -> Any:
    for index, item in enumerate(items):
        if part == str(index) or (isinstance(item, dict) and item.get("name") == part):
            return item
    names = ", ".join(
        str(i.get("name", n)) if isinstance(i, dict) else str(n) for n, i in enumerate(items)
    )
    raise InvalidInput(
        file=f"--set {key}",
        key=key,
        found=part,
        rule=f"an item of the list, by index or name: {names}",
        fix="name one of them",
    )
