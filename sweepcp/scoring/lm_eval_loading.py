"""Loading of lm-eval tasks: the few-shot examples, items and prompts of `simple_evaluate`."""

import functools
import hashlib
import heapq
import json
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.utils
import numpy as np
import torch
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import _import_func_in_yml

from sweepcp.config.suites import MemberSpec
from sweepcp.errors import InvalidInput, located
from sweepcp.scoring.lm_eval_items import check_example_count, check_examples, check_items
from sweepcp.scoring.scorecard import Unit, document_id
from sweepcp.scoring.task_files import (
    TaskEntry,
    TaskFolder,
    TaskFunction,
    read_task_folder,
    stock_tasks,
)
from sweepcp.scoring.task_rules import RECORDED_METRICS, checked_tasks
from sweepcp.scoring.task_selection import TaskSelection
from sweepcp.util.files import cache_dir


@dataclass(frozen=True)
class LoadedTask:
    """A task of lm-eval whose requests are built."""

    task: Any
    numbers: Sequence[int]
    """Number of each item in the task's data; an item's `doc_id` is its index here."""
    documents: tuple[str, ...]
    """The `document_id` of the document that each item is from."""
    instances: tuple[list[Any], ...]
    """The requests of each item, in the order in which they were built."""

    @property
    def name(self) -> str:
        """lm-eval's name of the task."""
        # `task.task_name` draws a random number at every call.
        return str(self.task.config.task)


@dataclass(frozen=True)
class LoadedMember:
    """The tasks of a member of a suite: one, or those of a tag or group."""

    tasks: tuple[LoadedTask, ...]
    by_size: dict[Unit, bool]
    """Whether lm-eval weights a task of the group by its number of items, or all tasks alike. Empty
    if lm-eval does not aggregate the tasks."""
    notes: tuple[str, ...]


def _sandbox_templates() -> None:
    """Have lm-eval render templates with its own filters in a sandbox.

    In the environment that it has, `{{ ''.__class__.__mro__ }}` leads to any Python.
    """
    sandbox = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    sandbox.filters.update(lm_eval.utils.env.filters)
    lm_eval.utils.env = sandbox


_sandbox_templates()
# Workers build tasks while the driver's own progress is on the terminal.
lm_eval.api.task.tqdm = functools.partial(lm_eval.api.task.tqdm, disable=True)
datasets.disable_progress_bars()


class MemberLoader:
    """Loads members of suites, reading each folder of task files once."""

    def __init__(self, device: torch.device, working_folder: Path = Path()) -> None:
        """Load nothing yet.

        Args:
            device: Its random generator is restored, like those of the CPU.
            working_folder: Where relative paths of data files start from.
        """
        self.device, self.working_folder = device, working_folder.absolute()
        self.folders: dict[str, TaskFolder] = {}

    def load(self, member: MemberSpec, folder: str) -> LoadedMember:
        """Load the tasks of a member and build their requests, as `simple_evaluate` would alone.

        Args:
            member: A member other than held-out text.
            folder: The folder of its task files; empty for the tasks that lm-eval ships.

        Raises:
            InvalidInput: lm-eval cannot load a task, or an item cannot be scored.
        """
        if folder not in self.folders:
            self.folders[folder] = read_task_folder(Path(folder)) if folder else stock_tasks()
        with located(f"task {member.name}"):
            selection = checked_tasks(member, self.folders[folder], self.working_folder)
        with stock_seeds(self.device), restricted_imports(member):
            with _explained(member.name, _task_of_traceback):
                loaded = _task_manager(selection).load(member.name)
            tasks = list(loaded["tasks"].values())
            notes = [note for task in tasks for note in _set_few_shot(task, member.few_shot)]
            built = tuple(_build(task, member) for task in tasks)
        return LoadedMember(built, _weighting(loaded["groups"].get(member.name)), tuple(notes))


def restricted_imports(member: MemberSpec) -> AbstractContextManager[None]:
    """Return a context in which lm-eval runs no Python but its own and what a member may run.

    Some tasks of lm-eval call `evaluate.load("rouge")`, which runs `rouge/rouge.py` of the working
    folder if there is one. Members that may run code stay in it.
    """
    return _bytecode_apart() if member.allow_code else chdir("/")


@contextmanager
def _bytecode_apart() -> Iterator[None]:
    """Have Python ignore compiled modules beside the sources that a person has read and allowed."""
    before, sys.pycache_prefix = sys.pycache_prefix, str(cache_dir() / "bytecode")
    try:
        yield
    finally:
        sys.pycache_prefix = before


def _task_manager(selection: TaskSelection) -> TaskManager:
    """Return lm-eval's manager of tasks that were read as data."""
    manager = TaskManager(include_defaults=False)
    for name, entry in selection.stock.items():
        file = entry.files[0] if entry.files else None
        manager.task_index[name] = Entry(name, _kind(entry), file, tags=set(entry.tasks))
    for name, entry in selection.entries.items():
        # Without a file lm-eval takes the settings as they are.
        settings = _with_functions(entry.config)
        manager.task_index[name] = Entry(name, _kind(entry), None, settings, set(entry.tasks))
    return manager


def _kind(entry: TaskEntry) -> Kind:
    return Kind[entry.kind.upper()]


def _with_functions(value: Any) -> Any:
    """Return settings with the functions that they name, which runs the modules of these."""
    if isinstance(value, TaskFunction):
        return _import_func_in_yml(value.name, value.folder)
    if isinstance(value, dict):
        return {key: _with_functions(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_functions(inner) for inner in value]
    return value


@contextmanager
def stock_seeds(device: torch.device) -> Iterator[None]:
    """Seed as `simple_evaluate` does by default, and restore all generators at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _set_few_shot(task: Any, few_shot: int | None) -> Iterator[str]:
    """Set the number of examples and the seed of their choice by the rules of `simple_evaluate`."""
    stated = task.config.num_fewshot
    if few_shot is None:
        task.set_config("num_fewshot", stated or 0)
    elif stated == 0 and few_shot:
        yield (
            f"{task.config.task} has no few-shot examples: its file states num_fewshot: 0, which "
            "lm-eval never overrides"
        )
    else:
        task.set_config("num_fewshot", few_shot)
    # Also where the task's file states the number: without a seed, every process draws its own.
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _build(task: Any, member: MemberSpec) -> LoadedTask:
    """Build the requests of a task, for a sample of its items if the member asks for one."""
    # `eval_docs` would run the task's `process_docs` once more, which may draw random numbers.
    items = task.task_docs if hasattr(task, "task_docs") else task.eval_docs
    sample = _sample(task, items, member.items) if member.task and member.items else None
    numbers: Sequence[int] = sample or range(len(items))
    check_example_count(task)
    with _explained(task.config.task, lambda _: task):
        task.build_all_requests(samples=sample)
    by_item: dict[int, list[Any]] = {}
    for instance in sorted(task.instances, key=lambda instance: instance.idx):
        by_item.setdefault(instance.doc_id, []).append(instance)
    # An item without requests has no choices, which the check reports.
    check_items(task, ((number, items[number]) for number in numbers))
    check_examples(task)
    instances = tuple(by_item[doc_id] for doc_id in range(len(numbers)))
    docs = [requests[0].doc for requests in instances]
    # Generated items state the held-out document that they are from.
    documents = (
        [document_id(_content(task, doc)) for doc in docs]
        if member.task
        else [doc["document"] for doc in docs]
    )
    return LoadedTask(task, numbers, tuple(documents), instances)


def _sample(task: Any, items: Any, count: int) -> list[int]:
    """Return the numbers of the items with the smallest SHA-256 of their content, ascending."""
    hashes = [hashlib.sha256(_content(task, item).encode()).digest() for item in items]
    return sorted(heapq.nsmallest(count, range(len(hashes)), key=hashes.__getitem__))


def _content(task: Any, item: Any) -> str:
    return str(task.config.task) + json.dumps(item, sort_keys=True, default=str)


def _weighting(group: Any) -> dict[Unit, bool]:
    """Return how lm-eval weights the tasks of a group, by unit; empty if it does not aggregate."""
    configs = (group.aggregate_metric_list or []) if group else []
    weighting: dict[Unit, bool] = {}
    for unit, metrics in RECORDED_METRICS.items():
        named = [config for config in configs if config.metric in metrics]
        # A group that aggregates another metric weights its tasks for this one in the same way.
        if configs:
            weighting[unit] = (named or configs)[0].weight_by_size
    return weighting


@contextmanager
def _explained(name: str, find_task: Callable[[Exception], Any]) -> Iterator[None]:
    """Turn an exception of lm-eval into invalid input, which names the item if one is invalid."""
    try:
        yield
    except Exception as error:
        task = find_task(error)
        if task is not None:
            check_items(task, enumerate(task.task_docs))
            check_examples(task)
        raise InvalidInput(
            file=f"task {name}",
            found=f"{type(error).__name__}: {error}",
            rule="a task that lm-eval can load, and whose prompts it can build",
            fix="correct the name of the task, its file or its data",
        ) from error


def _task_of_traceback(error: Exception) -> Any:
    """Return the task that lm-eval was building when it raised, as far as it had come; or None.

    lm-eval tries the first item while it builds a task, and reports neither when that fails.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        task = frame.f_locals.get("self")
        if hasattr(task, "task_docs") and hasattr(task, "multiple_target"):
            return task
    return None
