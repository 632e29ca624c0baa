"""The data of task files on this machine: where lm-eval would look for them, and what is there."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput, located
from sweepcp.scoring.task_files import TaskEntry, walk
from sweepcp.scoring.task_selection import raw_settings
from sweepcp.util.paths import user_path

BUILDERS = ("json", "csv", "parquet", "arrow", "text", "xml")
"""Values of `dataset_path` with which `datasets` reads files as data."""


def with_local_data(entry: TaskEntry, working_folder: Path) -> TaskEntry:
    """Return an entry whose data files have absolute paths.

    lm-eval looks for them in the folder that a command is run in, and workers run in another one.

    Args:
        entry: A task or group of a folder.
        working_folder: The folder that the command is run in. What is not found there is looked for
            beside the task file and beside the files that it includes.

    Raises:
        InvalidInput: A file is in none of these folders.
    """
    if not entry.files:
        return entry
    roots = [working_folder, *dict.fromkeys(file.parent for file in entry.files)]
    with located(entry.files[0]):
        config = _localised(entry.config, roots)
    return replace(entry, config=config)


def _localised(settings: dict[str, Any], roots: list[Path]) -> dict[str, Any]:
    settings = dict(settings)
    path, options = settings.get("dataset_path"), settings.get("dataset_kwargs")
    if isinstance(path, str) and path not in BUILDERS:
        folder = _local_folder(path, roots)
        if folder is None and path.startswith((".", "/", "~")):
            raise _missing("dataset_path", path, roots)
        settings["dataset_path"] = str(folder) if folder else path
    elif isinstance(options, dict) and path is not None:
        settings["dataset_kwargs"] = _localised_options(options, roots)
    elif isinstance(options, dict):
        # A group changes the options of a task whose data it does not name.
        with suppress(InvalidInput):
            settings["dataset_kwargs"] = _localised_options(options, roots)
    if isinstance(items := settings.get("task"), list):
        settings["task"] = [
            _localised(item, roots) if isinstance(item, dict) else item for item in items
        ]
    return settings


def _local_folder(name: str, roots: list[Path]) -> Path | None:
    """Return the folder that `datasets` would take a `dataset_path` for.

    Only an explicit `./name` is looked for beside the task file: `name` may be on the hub.
    """
    for root in roots if name.startswith(".") else roots[:1]:
        if (folder := user_path(name, folder=root)).is_dir():
            return folder.resolve()
    return None


def _localised_options(options: dict[str, Any], roots: list[Path]) -> dict[str, Any]:
    options = dict(options)
    folder = options.get("data_dir")
    if isinstance(folder, str) and not is_remote(folder):
        # Data files are then relative to this folder.
        options["data_dir"] = _local_name("data_dir", folder, roots)
    elif "data_files" in options:
        options["data_files"] = _local_names(options["data_files"], roots)
    return options


def _local_names(value: Any, roots: list[Path]) -> Any:
    """Return `data_files`, a name or lists or mappings of names, with absolute paths."""
    if isinstance(value, dict):
        return {key: _local_names(inner, roots) for key, inner in value.items()}
    if isinstance(value, list):
        return [_local_names(inner, roots) for inner in value]
    if not isinstance(value, str):
        fix = "name a file"
        raise InvalidInput(key="dataset_kwargs.data_files", found=value, rule="a path", fix=fix)
    if is_remote(value):
        return value
    # `datasets` takes brackets for a pattern, in the folders above a file, too.
    return _local_name("data_files", value, roots).replace("[", "[[]")


def _local_name(key: str, name: str, roots: list[Path]) -> str:
    for root in roots:
        if find_data(path := user_path(name, folder=root)):
            return str(path.absolute())
    raise _missing(f"dataset_kwargs.{key}", name, roots)


def data_of(entry: TaskEntry) -> Iterator[Path]:
    """Yield the data files of an entry that `with_local_data` returned."""
    for settings in raw_settings(entry):
        options = settings.get("dataset_kwargs")
        options = options if isinstance(options, dict) else {}
        files, folder = walk(options.get("data_files")), options.get("data_dir")
        for name in (settings.get("dataset_path"), folder, *files):
            if isinstance(name, str) and not is_remote(name) and Path(name).is_absolute():
                yield from find_data(Path(name.replace("[[]", "[")))


def find_data(path: Path) -> list[Path]:
    """Return the file of a path, the files of a folder, or those that match a pattern."""
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.is_file())
        fixed = path
        while "*" in str(fixed) or "?" in str(fixed):
            fixed = fixed.parent
        if fixed != path:
            found = fixed.glob(str(path.relative_to(fixed)))
            return sorted(file for file in found if file.is_file())
    except (OSError, ValueError):
        pass
    return []


def _missing(key: str, name: str, roots: list[Path]) -> InvalidInput:
    folders = " or ".join(map(str, dict.fromkeys(roots)))
    return InvalidInput(
        key=key,
        found=name,
        rule=f"data that is there, relative to {folders}",
        fix="correct the path, or run the command where the path begins",
    )


def is_remote(name: str) -> bool:
    """Return whether a name of data is an address rather than a path."""
    return "://" in name
