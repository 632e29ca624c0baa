"""The files that decide the items of a local lm-eval task, and their hash."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweepcp.util.file_hashes import content_hashes
from sweepcp.util.json_values import digest


class _FunctionName(str):
    """What follows `!function` in a task file: `module.function`."""

    __slots__ = ()


class _TaskLoader(yaml.SafeLoader):
    """Reads task files without running the Python that they name."""


def _construct_name(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> _FunctionName | None:
    if not isinstance(node, yaml.ScalarNode):
        return None
    return _FunctionName(loader.construct_scalar(node))


_TaskLoader.add_multi_constructor("!", _construct_name)


@dataclass(frozen=True)
class _TaskFile:
    """A YAML file of lm-eval, with what it includes."""

    files: tuple[Path, ...]
    """The file and its includes."""
    config: dict[str, Any]
    """The settings of all of them."""

    @property
    def names(self) -> set[str]:
        """The task, group and tags that it defines."""
        task, others = self.config.get("task"), [self.config.get("group"), self.config.get("tag")]
        return {task, *_strings(others)} if isinstance(task, str) else set(_strings(others))

    @property
    def parts(self) -> set[str]:
        """The tasks of a group."""
        entries = self.config.get("task")
        if not isinstance(entries, list):
            return set()
        names = [entry.get("task") if isinstance(entry, dict) else entry for entry in entries]
        return {name for name in names if isinstance(name, str)}


def task_fingerprint(folder: Path, task: str) -> str:
    """Return 16 hex digits that change with any file that decides the items of a task.

    These are its YAML files, what they include, their Python and the files beside it, and the data
    files that they name on this machine. Of a name that no file defines, every task counts.

    Args:
        folder: The folder of task files.
        task: A task, tag or group.
    """
    found = [_read_task_file(path) for path in sorted(folder.rglob("*.yaml"))]
    tasks = [file for file in found if file is not None and file.names]
    files: set[Path] = set()
    for file in _files_of(task, tasks) or tasks:
        files.update(file.files)
        for path in file.files:
            files.update(_data_files(file.config, path.parent))
            files.update(_python_files(file.config, path.parent))
    paths = sorted({path.resolve() for path in files})
    names = [path.name for path in paths]
    return digest(sorted(zip(names, content_hashes(paths), strict=True)))


def _read_task_file(path: Path, seen: tuple[Path, ...] = ()) -> _TaskFile | None:
    """Read a task file and its includes; None if it is none."""
    try:
        config = yaml.load(path.read_bytes(), _TaskLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(config, dict):
        return None
    files: list[Path] = [path]
    merged: dict[str, Any] = {}
    for name in _strings(config.get("include")):
        included = path.parent / name
        if included not in seen:
            inner = _read_task_file(included, (*seen, path))
            if inner is not None:
                files += inner.files
                merged |= inner.config
    return _TaskFile(tuple(files), merged | config)


def _files_of(task: str, tasks: list[_TaskFile]) -> list[_TaskFile]:
    """Return the files that define a task, tag or group, and those of a group's parts."""
    names, chosen = {task}, []
    while found := [file for file in tasks if file not in chosen and names & file.names]:
        chosen += found
        for file in found:
            names |= file.parts
    return chosen


def _data_files(config: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Yield the data files of a task that are on this machine."""
    options = config.get("dataset_kwargs")
    options = options if isinstance(options, dict) else {}
    named = [config.get("dataset_path"), options.get("data_files"), options.get("data_dir")]
    for name in _strings(named):
        for root in (folder, Path.cwd()):
            path = root / name
            if path.is_dir():
                yield from (file for file in path.rglob("*") if file.is_file())
            elif path.is_file():
                yield path
            elif "*" in path.name and path.parent.is_dir():
                yield from (file for file in path.parent.glob(path.name) if file.is_file())


def _python_files(config: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Yield the modules of a task's functions, and the files beside them, which they may read."""
    for name in _strings(list(config.values())):
        if isinstance(name, _FunctionName):
            module = folder / f"{name.rpartition('.')[0].replace('.', '/')}.py"
            if module.is_file():
                beside = (file for file in module.parent.iterdir() if file.is_file())
                yield from (f for f in beside if f.suffix != ".yaml" and f.name[0] != ".")


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a value, or in the lists and mappings that it consists of."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
