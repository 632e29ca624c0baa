"""Loading of lm-eval tasks: the few-shot examples, items and prompts of `simple_evaluate`."""

import hashlib
import heapq
import json
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from sweepcp.config.suites import MemberSpec
from sweepcp.errors import InvalidInput
from sweepcp.scoring.lm_eval_items import check_examples, check_items
from sweepcp.scoring.scorecard import Unit, document_id

METRICS: dict[Unit, tuple[str, ...]] = {
    "bits per byte": ("bits_per_byte", "byte_perplexity"),
    "accuracy": ("acc", "exact_match"),
    "normalised accuracy": ("acc_norm",),
}
"""Metrics of lm-eval that are recorded under a unit; the first that a task measures counts."""


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


class MemberLoader:
    """Loads members of suites, indexing each folder of task files once."""

    def __init__(self, device: torch.device) -> None:
        """Load nothing yet.

        Args:
            device: Its random generator is restored, like those of the CPU.
        """
        self.device = device
        self.managers: dict[str, TaskManager] = {}

    def load(self, member: MemberSpec, folder: str) -> LoadedMember:
        """Load the tasks of a member and build their requests, as `simple_evaluate` would alone.

        Args:
            member: A member other than held-out text.
            folder: The folder of its task files; empty for the tasks that lm-eval ships.

        Raises:
            InvalidInput: lm-eval cannot load a task, or an item cannot be scored.
        """
        if folder not in self.managers:
            # Indexing lm-eval's own thousands of tasks takes many seconds.
            self.managers[folder] = (
                TaskManager(include_path=folder, include_defaults=False)
                if folder
                else TaskManager()
            )
        with stock_seeds(self.device):
            with _explained(member.name, _task_of_traceback):
                loaded = self.managers[folder].load(member.name)
            tasks = list(loaded["tasks"].values())
            notes = [note for task in tasks for note in _set_few_shot(task, member.few_shot)]
            built = tuple(_build(task, member) for task in tasks)
        return LoadedMember(built, _weighting(loaded["groups"].get(member.name)), tuple(notes))


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
    for unit, metrics in METRICS.items():
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
