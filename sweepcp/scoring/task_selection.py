"""What lm-eval would build for a task, tag or group: its files, and its tasks with their settings.

The rules are those of lm-eval's factory: a group passes settings on to its tasks, may define tasks
of its own, and may name tasks of the folder or those that are installed with lm-eval.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.scoring.task_files import TaskEntry, TaskFolder, stock_tasks

GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""Keys of a group that are not passed on to its tasks."""
DATA_KEYS = ("dataset_path", "custom_dataset", "class")
"""Keys of which a task has at least one."""
MAX_TASKS = 100_000
"""Tasks of a group. Groups that contain each other twice over would be expanded without end."""
MAX_NESTING = 20
"""Groups within groups."""


@dataclass(frozen=True)
class LeafTask:
    """A task that is scored."""

    name: str
    config: dict[str, Any]
    """The settings of its file, and over them those of the groups that contain it."""
    file: Path
    """The file of the task, or of the group that defines it."""
    changes: dict[str, Any]
    """The settings of the groups alone."""
    is_stock: bool = False
    """Whether the task is one that is installed with lm-eval."""


@dataclass
class TaskSelection:
    """What lm-eval needs of task files to build a task, tag or group."""

    entries: dict[str, TaskEntry] = field(default_factory=dict)
    """Those of a person's folder."""
    stock: dict[str, TaskEntry] = field(default_factory=dict)
    """Those that are installed with lm-eval."""
    leaves: list[LeafTask] = field(default_factory=list)


def select_tasks(name: str, folder: TaskFolder) -> TaskSelection:
    """Return what a task, tag or group of a folder consists of.

    Args:
        name: Its name.
        folder: A folder of task files, or `stock_tasks()`.

    Raises:
        InvalidInput: A name is none of the folder's, or a group is not one that lm-eval can build.
            The error names no file where the name itself is wrong.
    """
    if name not in folder.entries:
        raise _unknown_name(name, folder)
    selector = _Selector(folder)
    selector.add(name, {}, ())
    if not selector.found.leaves:
        entry = folder.entries[name]
        raise InvalidInput(
            file=entry.files[0] if entry.files else "",
            key="task",
            found=entry.config.get("task"),
            rule="a list of at least one task",
            fix="list the tasks of the group",
        )
    return selector.found


class _Selector:
    """Follows the names of a folder's groups and tags."""

    def __init__(self, folder: TaskFolder) -> None:
        self.folder = folder
        self.found = TaskSelection()

    def add(self, name: str, overrides: dict[str, Any], groups: tuple[str, ...]) -> None:
        """Add a task, tag or group of the folder or of lm-eval, and all that it consists of."""
        entry = self._entry(name)
        if entry.kind == "tag":
            for task in entry.tasks:
                self.add(task, overrides, groups)
        elif entry.kind == "group":
            self._add_group(name, entry.config, overrides, file=entry.files[0], groups=groups)
        else:
            is_stock = name in self.found.stock
            config, file = entry.config | overrides, entry.files[0]
            self._add_leaf(LeafTask(name, config, file, overrides, is_stock))

    def _entry(self, name: str) -> TaskEntry:
        if name in self.folder.entries and not self.folder.is_stock:
            self.found.entries[name] = self.folder.entries[name]
            return self.folder.entries[name]
        self.found.stock[name] = stock_tasks().entries[name]
        return self.found.stock[name]

    def _add_group(
        self,
        name: str,
        config: dict[str, Any],
        overrides: dict[str, Any],
        *,
        file: Path,
        groups: tuple[str, ...],
    ) -> None:
        if name in groups or len(groups) == MAX_NESTING:
            raise InvalidInput(
                file=file,
                key="task",
                found=" > ".join((*groups, name)),
                rule=f"groups that do not contain themselves, and at most {MAX_NESTING} levels",
                fix="remove the group from itself",
            )
        passed_on = {key: config[key] for key in config if key not in GROUP_KEYS} | overrides
        items = config.get("task")
        for item in items if isinstance(items, list) else []:
            self._add_item(item, passed_on, file=file, groups=(*groups, name))

    def _add_item(
        self, item: Any, overrides: dict[str, Any], *, file: Path, groups: tuple[str, ...]
    ) -> None:
        """Add what an entry of a group's list stands for: a name, or settings with a name."""
        settings = item if isinstance(item, dict) else {"task": item}
        is_group = "group" in settings
        name = settings.get("group" if is_group else "task")
        if not isinstance(name, str):
            raise InvalidInput(
                file=file,
                key="task",
                found=item,
                rule="names of tasks, tags and groups, or mappings with `task` or `group`",
                fix="correct the list",
            )
        if is_group and not self._is_known(name):
            inner = f"{groups[-1]}::{name}"
            self._add_group(inner, settings, overrides, file=file, groups=groups)
        elif self._is_known(name):
            own = settings if isinstance(item, dict) else {}
            changes = {key: own[key] for key in own if not is_group or key != "group"}
            self.add(name, overrides | changes, groups)
        else:
            config = overrides | settings | {"task": f"{groups[-1]}::{name}"}
            if not any(key in config for key in DATA_KEYS):
                raise _unknown_name(name, self.folder, in_group=True).within(file, "task")
            self._add_leaf(LeafTask(config["task"], config, file, config))

    def _is_known(self, name: str) -> bool:
        return name in self.folder.entries or name in stock_tasks().entries

    def _add_leaf(self, leaf: LeafTask) -> None:
        if len(self.found.leaves) == MAX_TASKS:
            raise InvalidInput(
                file=leaf.file,
                key="task",
                found=f"more than {MAX_TASKS:,} tasks",
                rule=f"a group of at most {MAX_TASKS:,} tasks",
                fix="remove groups that contain the same tasks",
            )
        self.found.leaves.append(leaf)


def _unknown_name(name: str, folder: TaskFolder, *, in_group: bool = False) -> InvalidInput:
    """Return the error of a name that is none of a folder's tasks, with those that are near it.

    A group may also name tasks that are installed with lm-eval.
    """
    near = get_close_matches(name, folder.entries, n=5)
    if in_group and not folder.is_stock:
        near = [*near, *get_close_matches(name, stock_tasks().entries, n=5)][:5]
    fix = "correct the name"
    if near:
        fix += f"; near it are {', '.join(near)}"
    elif folder.unread:
        path, reason = next(iter(folder.unread.items()))
        fix += f", or {path}, which cannot be read ({reason})"
    elif not folder.is_stock and name in stock_tasks().entries:
        fix = "remove `path`: the task is one of those that are installed with lm-eval"
    return InvalidInput(
        found=name,
        rule=f"a task, tag or group of {folder.path} (it has {_names(folder.entries)})"
        + (", or of lm-eval" if in_group and not folder.is_stock else ""),
        fix=fix,
    )


def _names(entries: dict[str, TaskEntry]) -> str:
    if len(entries) > 5:
        return f"{len(entries):,}"
    return ", ".join(entries) or "none"


def raw_settings(entry: TaskEntry) -> Iterator[dict[str, Any]]:
    """Yield the settings that a file states: its own, and those in the lists of its groups."""
    waiting = [entry.config]
    while waiting:
        settings = waiting.pop()
        yield settings
        items = settings.get("task")
        if isinstance(items, list):
            waiting += [item for item in items if isinstance(item, dict)]
