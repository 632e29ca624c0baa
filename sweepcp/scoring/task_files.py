"""Task files of lm-eval, read as data.

lm-eval's own loader imports the Python that a task file names (`!function module.name`) while it
reads the file. This one reads the same YAML, includes and tags, and only keeps the names. lm-eval
then receives what was read here, so it never parses a file that somebody wrote.
"""

import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sweepcp.util.paths import check_input_file

IGNORED_FOLDERS = {"__pycache__", ".ipynb_checkpoints"}
MAX_DEPTH = 60
"""Levels of a task file. The C parser that lm-eval reads with crashes at some ten thousand."""
MAX_VALUES = 1_000_000
"""Values of a task file with its includes, each alias counted as what it stands for."""
Kind = Literal["task", "group", "tag"]


@dataclass(frozen=True)
class TaskFunction:
    """What follows `!function` in a task file: `module.function`, and the folder of the file."""

    name: str
    folder: Path

    @property
    def module(self) -> Path:
        """The file that lm-eval imports the function from, if there is one."""
        return self.folder / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"


@dataclass(frozen=True)
class TaskEntry:
    """A task, group or tag of a folder."""

    name: str
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)
    """The settings of its file and of what the file includes; empty for a tag."""
    files: tuple[Path, ...] = ()
    """Its file, and what the file includes; empty for a tag."""
    tasks: tuple[str, ...] = ()
    """The tasks of a tag, sorted."""


@dataclass(frozen=True)
class TaskFolder:
    """The tasks, groups and tags that lm-eval finds in a folder."""

    path: Path
    entries: dict[str, TaskEntry]
    unread: dict[Path, str]
    """Files that lm-eval cannot read, and why."""
    is_stock: bool
    """Whether it is the folder that is installed with lm-eval."""


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """lm-eval's loader (YAML 1.1), except that functions stay names."""

    folder: Path


def _construct_function(loader: _TaskLoader, node: yaml.Node) -> TaskFunction:
    return TaskFunction(str(loader.construct_scalar(node)), loader.folder)


_TaskLoader.add_constructor("!function", _construct_function)


def read_task_folder(folder: Path) -> TaskFolder:
    """Read the task files of a folder, by lm-eval's rules of what counts and what comes first."""
    return _read_folder(folder, trusted=False)


@functools.cache
def stock_tasks() -> TaskFolder:
    """Read the thousands of task files that are installed with lm-eval, which takes seconds."""
    # Importing lm-eval would import torch.
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return _read_folder(Path(spec.submodule_search_locations[0]) / "tasks", trusted=True)


def _read_folder(folder: Path, *, trusted: bool) -> TaskFolder:
    reader = _Reader(trusted=trusted)
    entries: dict[str, TaskEntry] = {}
    tagged: dict[str, set[str]] = {}
    unread: dict[Path, str] = {}
    found = (p for p in folder.glob("**/*.yaml") if IGNORED_FOLDERS.isdisjoint(p.parts))
    for path in sorted(found, key=lambda path: path.as_posix()):
        try:
            config, files = reader.read(path, set())
        # The constructors of PyYAML raise what the value led to: `!!int ""` is an IndexError.
        except Exception as error:
            unread[path] = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        _add_entry(entries, tagged, config, files)
    for tag, tasks in tagged.items():
        if entries[tag].kind == "tag":
            entries[tag] = TaskEntry(tag, "tag", tasks=tuple(sorted(tasks)))
    return TaskFolder(folder, entries, unread, trusted)


def _add_entry(
    entries: dict[str, TaskEntry],
    tagged: dict[str, set[str]],
    config: dict[str, Any],
    files: tuple[Path, ...],
) -> None:
    """Add what a file defines, unless a file or tag before it has the same name."""
    is_group = "group" in config and "class" not in config
    name = config.get("group" if is_group else "task")
    if not isinstance(name, str) or name in entries:
        return
    entries[name] = TaskEntry(name, "group" if is_group else "task", config, files)
    tags = config.get("tag")
    for tag in tags if isinstance(tags, list) else [tags]:
        if isinstance(tag, str) and not is_group:
            entries.setdefault(tag, TaskEntry(tag, "tag"))
            tagged.setdefault(tag, set()).add(name)


class _Reader:
    """Reads files with their includes, each once."""

    def __init__(self, *, trusted: bool) -> None:
        self.trusted = trusted
        self.parsed: dict[Path, dict[str, Any]] = {}

    def read(self, path: Path, seen: set[Path]) -> tuple[dict[str, Any], tuple[Path, ...]]:
        """Return the settings of a file over those of what it includes, and all of the files."""
        # Looking up thousands of paths takes as long as reading the files.
        path = Path(os.path.normpath(path)) if self.trusted else path.expanduser().resolve()
        if path in seen:
            # As lm-eval has it, also where two includes share a third.
            raise ValueError(f"{path} is included twice")
        seen.add(path)
        config = dict(self._parse(path))
        includes = config.pop("include", [])
        merged: dict[str, Any] = {}
        files: tuple[Path, ...] = (path,)
        for name in includes if isinstance(includes, list) else [includes]:
            if not isinstance(name, str) or "\0" in name:
                raise ValueError(f"include: {name!r} is not a path")
            included, more = self.read(path.parent / name, seen)
            included.pop("task_list", None)
            merged |= included
            files += more
        merged |= config
        if not self.trusted:
            check_extent(merged)
        return merged, files

    def _parse(self, path: Path) -> dict[str, Any]:
        if path not in self.parsed:
            check_input_file(path)  # a named pipe would wait for a writer
            content = path.read_bytes()
            if not self.trusted:
                _check_depth(content)
            loader = _TaskLoader(content)
            loader.folder = path.parent
            try:
                config = loader.get_single_data()
            finally:
                loader.dispose()
            if not isinstance(config, dict):
                raise ValueError("not a mapping of keys to values")
            self.parsed[path] = config
        return self.parsed[path]


def _check_depth(content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, Loader=_TaskLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")


def check_extent(value: Any) -> None:
    """Raise `ValueError` if aliases of a value expand to more than lm-eval could copy."""
    for count, _ in enumerate(walk(value)):
        if count > MAX_VALUES:
            raise ValueError(f"aliases that expand to more than {MAX_VALUES:,} values")


def walk(value: Any) -> Iterator[Any]:
    """Yield a value and all values inside it, keys of mappings included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
