"""The files that decide the items of a local lm-eval task, and their hash."""

from collections.abc import Iterator
from pathlib import Path

from sweepcp.scoring.task_data import data_of, with_local_data
from sweepcp.scoring.task_files import TaskEntry, TaskFunction, read_task_folder, walk
from sweepcp.scoring.task_selection import select_tasks
from sweepcp.util.file_hashes import content_hashes
from sweepcp.util.json_values import digest


def task_fingerprint(folder: Path, task: str) -> str:
    """Return 16 hex digits that change with any file that decides the items of a task.

    These are its YAML files, what they include, their Python and the files beside it, and the data
    files that they name on this machine.

    Args:
        folder: The folder of task files.
        task: A task, tag or group.

    Raises:
        InvalidInput: There is no such task, or a data file of it is missing.
    """
    selection = select_tasks(task, read_task_folder(folder))
    files: set[Path] = set()
    for entry in (*selection.entries.values(), *selection.stock.values()):
        files.update(entry.files)
        files.update(_python_files(entry))
    for entry in selection.entries.values():
        files.update(data_of(with_local_data(entry, Path.cwd())))
    paths = sorted({path.resolve() for path in files})
    names = [path.name for path in paths]
    return digest(sorted(zip(names, content_hashes(paths), strict=True)))


def _python_files(entry: TaskEntry) -> Iterator[Path]:
    """Yield the modules of a task's functions, and the files and packages beside them."""
    for value in walk(entry.config):
        if isinstance(value, TaskFunction) and value.module.is_file():
            beside = list(value.module.parent.iterdir())
            files = (path for path in beside if path.is_file())
            yield from (file for file in files if file.suffix != ".yaml" and file.name[0] != ".")
            for package in beside:
                if (package / "__init__.py").is_file():
                    yield from package.rglob("*.py")
