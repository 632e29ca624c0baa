"""Files that people write: where they are, and their content."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.yaml_values import DOCUMENT, KeyPath, compose_yaml, parse_yaml
from sweepcp.errors import InvalidInput, located
from sweepcp.util.files import shipped_folder
from sweepcp.util.paths import describe_kind, read_input_file, user_path

MAX_BYTES = 1 << 20
"""Larger files are not written by hand, and take a minute to parse."""


def find_config_file(name: str, *, kind: str, key: str, folder: Path | None = None) -> Path:
    """Return a file by its path, or a shipped one by its name.

    Args:
        name: A path, or the name of a shipped file without its suffix.
        kind: The folder of shipped files, such as `experiments/targets`.
        key: The key, argument or option that names the file, for messages.
        folder: The folder that a relative path starts from; by default the working directory.

    Raises:
        InvalidInput: There is no such file.
    """
    with located("", key):
        path = user_path(name, folder=folder or Path.cwd())
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_folder(kind).glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    similar = difflib.get_close_matches(name, shipped, n=1)
    raise InvalidInput(
        file="" if folder else path,
        key=key,
        found=f"{name}: {describe_kind(path)}" if path.exists() else name,
        rule=f"the path of a file, or one of: {', '.join(sorted(shipped))}",
        fix=f"did you mean {similar[0]}?" if similar else "correct the path",
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Returns:
        Its content: text without NUL, 64-bit integers, finite numbers, booleans, None, lists, and
        mappings with keys of text.

    Raises:
        InvalidInput: The file cannot be read, or holds something else.
    """
    content = parse_yaml(_read_text(path), path)
    if not isinstance(content, dict):
        raise InvalidInput(
            file=path,
            key=DOCUMENT,
            found=content,
            rule="a mapping of keys to values",
            fix="write `key: value` lines",
        )
    return content


def line_of(file: Path, keys: KeyPath) -> int | None:
    """Return the line of the last of nested keys and indices that occurs in a YAML file.

    None if the file cannot be read any more, or if none of them occurs in it, as with an override.
    """
    try:
        node = compose_yaml(_read_text(file), file)
    except InvalidInput:
        return None
    line = None
    for key in keys:
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
        return next((entry for entry in entries if entry[0].value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _read_text(path: Path) -> str:
    """Return the text of a file, refusing what is no regular file, too large, or not UTF-8."""
    with located(path, "the file"):
        data = read_input_file(path, MAX_BYTES + 1)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            found = f"byte 0x{data[error.start]:02x} in line {line}"
            rule, fix = "UTF-8 text", "save the file as UTF-8"
            raise InvalidInput(found=found, rule=rule, fix=fix) from None
        if len(data) > MAX_BYTES:
            found = f"more than {MAX_BYTES:,} bytes"
            rule = f"a file that people write, of at most {MAX_BYTES:,} bytes"
            raise InvalidInput(found=found, rule=rule, fix="check the path: is it a corpus?")
    return text
