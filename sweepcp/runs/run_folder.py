"""The run folder: what a search writes and every later stage reads.

experiment.json            the experiment with all defaults, and hashes of all that it reads
base.json                  the scores of the base model at step 0
trials/<id>/metrics.jsonl  one line per optimizer step
trials/<id>/items.json     the results of single items
trials/<id>/trial.json     the record of the trial; it is written last and finishes the trial
front.json                 the front, and the choice by the experiment's rule
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from sweepcp.config.choice import ChoiceRule
from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Recipe
from sweepcp.config.validation import validate
from sweepcp.errors import InvalidInput, located
from sweepcp.runs.front import Choice, Front, pareto_front
from sweepcp.runs.trial import BaseRecord, StepRecord, Trial, TrialOutcome
from sweepcp.scoring.scorecard import Scorecard, write_items
from sweepcp.util.files import naming_errors, write_json, write_text
from sweepcp.util.garbage import no_garbage_collection
from sweepcp.util.locks import exclusive_lock, is_locked
from sweepcp.util.records import Record, is_file, read_bytes, read_record, read_record_lines
from sweepcp.util.temporary import remove_abandoned

RECIPE_COLUMNS = tuple(name for name in Recipe.model_fields if name not in ("mixture", "betas"))
"""Fields of a recipe that are columns of a table of trials."""
COST_COLUMNS = (
    "train_seconds", "score_seconds", "micro_batch", "attention", "memory_gib",
    "estimated_memory_gib", "memory_ratio",
)  # fmt: skip
"""Attributes of a cost that are."""
EXPERIMENT_FILE = "experiment.json"
TRIAL_FILE = "trial.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "driver.lock"
TRIAL_NAME = re.compile(r"\d{4,}")


class RunIdentity(Record):
    """What a run's numbers depend on besides the settings of its experiment, by content.

    Paths and times have no part in it.
    """

    sources: dict[str, str] = Field(default_factory=dict)
    """Source → fingerprint of its files and of how they are read."""
    base: dict[str, str] = Field(default_factory=dict)
    """Hashes of `weights`, `config` and `tokenizer`, or the `commit` of a hub base; of a base that
    has not been pretrained yet, of its tokenizer only."""
    tasks: dict[str, str] = Field(default_factory=dict)
    """Suite member → hash of the task files in its `path`, or of its generated task."""
    stores: dict[str, str] = Field(default_factory=dict)
    """Source → hash of its token store; empty until the stores are built."""


class ExperimentRecord(Record):
    """`experiment.json`: what the run was asked for, and on which data."""

    format: Literal[2] = 2
    """Version of the format."""
    experiment: dict[str, Any]
    """The experiment with every default."""
    identity: RunIdentity
    """Hashes of all that the run's numbers depend on."""


@dataclass(frozen=True)
class Run:
    """The content of a run folder, read by `read_run`."""

    path: Path
    experiment: Experiment
    """The experiment with all defaults filled in."""
    identity: RunIdentity
    """Hashes of what the run's numbers depend on."""
    base: BaseRecord | None
    """None until the base has been scored."""
    trials: list[Trial]
    """The finished trials, ordered by number."""
    unfinished: dict[str, int]
    """Trials that were started and are not finished → optimizer steps in their metrics file."""
    locked: bool
    """Whether a running search holds the folder's lock."""
    rule: ChoiceRule
    """How one trial of the front is chosen: the experiment's rule, or that of `with_rule`."""

    @cached_property
    def front(self) -> Front:
        """The Pareto front of the finished trials, and the choice."""
        return pareto_front(self.trials, self.rule, self.experiment.choose.reference)

    def with_rule(self, **rule: Any) -> Self:
        """Return the run with another rule of choice, or the run itself when none is given.

        Args:
            **rule: `max_regression=1.0`, `knee=True` or `weights={"domain": 1, "general": 2}`.

        Raises:
            InvalidInput: `rule` is none of these.
        """
        if not rule:
            return self
        return replace(self, rule=validate(ChoiceRule, rule, "the rule of choice"))

    def choose(self, **rule: Any) -> Choice:
        """Return the choice by a rule, see `with_rule`; its `id` is None if no trial meets it."""
        return self.with_rule(**rule).front.choice

    @cached_property
    def by_id(self) -> dict[str, Trial]:
        """The finished trials by their ids."""
        return {trial.id: trial for trial in self.trials}

    @property
    def done(self) -> list[Trial]:
        """The trials of status "done": those that were scored."""
        return [trial for trial in self.trials if trial.status == "done"]

    @property
    def chosen(self) -> Trial | None:
        """The trial that the rule chooses."""
        return self.by_id.get(self.front.choice.id or "")

    @property
    def chosen_or_nearest(self) -> Trial | None:
        """The chosen trial, or the trial of least regression if none meets the rule.

        None if no trial is done.
        """
        return self.chosen or self.by_id.get(self.front.choice.nearest or "")

    @property
    def state(self) -> Literal["finished", "running", "interrupted"]:
        """Progress of the search. It is finished when every trial of the budget is."""
        wanted = self.experiment.budget.trials
        if sum(trial.number < wanted for trial in self.trials) == wanted:
            return "finished"
        return "running" if self.locked else "interrupted"

    def trial_folder(self, trial_id: str) -> Path:
        """Return the folder of a trial's files."""
        return self.path / "trials" / trial_id

    def read_steps(self, trial_id: str) -> list[dict[str, Any]]:
        """Read the metrics of a trial: step, LR, loss, gradient norm, tokens by source.

        A last line that is still being written is left out.

        Raises:
            InvalidInput: The file is corrupt.
        """
        file = self.trial_folder(trial_id) / METRICS_FILE
        if not file.exists():
            return []
        steps = read_record_lines(StepRecord, file, fix=_trial_fix(file), complete=False)
        return [step.model_dump(exclude_unset=True) for step in steps]

    def trial_rows(self) -> list[dict[str, Any]]:
        """Return one table row per finished trial.

        Each has id, status, proposer, recipe, shares by source, scores of both halves in %, and
        cost.
        """
        front = self.front
        return [
            _trial_row(trial, on_front=trial.id in front.ids, chosen=trial.id == front.choice.id)
            for trial in self.trials
        ]


def read_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InvalidInput: The folder is no run folder, or a record in it is corrupt or of another
            version of sweepcp.
    """
    folder = Path(path)
    experiment, identity = _read_experiment(folder / EXPERIMENT_FILE)
    base_file = folder / "base.json"
    base = _read_base(base_file) if base_file.exists() else None
    items = _item_counts(base) if base is not None else None
    folders = _trial_folders(folder / "trials")
    with no_garbage_collection():
        files = [path / TRIAL_FILE for path in folders]
        trials = [_read_trial(file, items) for file in files if file.exists()]
    return Run(
        path=folder,
        experiment=experiment,
        identity=identity,
        base=base,
        trials=sorted(trials, key=lambda trial: trial.number),
        unfinished=_unfinished_trials(folders, {trial.id for trial in trials}),
        locked=is_locked(folder / LOCK_FILE),
        rule=experiment.choose,
    )


class RunWriter:
    """Writer of a run folder. There is one at a time: the search that holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, experiment: Experiment, identity: RunIdentity) -> None:
        """Write the experiment, which turns the folder into a run folder."""
        record = ExperimentRecord(experiment=experiment.model_dump(mode="json"), identity=identity)
        write_json(self.path / EXPERIMENT_FILE, record.model_dump(mode="json"))

    def write_base(self, base: BaseRecord) -> None:
        """Write the scores of the base model."""
        self._check_present()
        write_text(self.path / "base.json", base.model_dump_json() + "\n")

    def begin_trial(self, trial_id: str) -> None:
        """Drop the files of an earlier attempt at a trial.

        The record of an attempt that failed is kept until a new one replaces it.
        """
        folder = self._trial_folder(trial_id)
        if (folder / TRIAL_FILE).exists():
            (folder / METRICS_FILE).unlink(missing_ok=True)
        elif folder.exists():
            shutil.rmtree(folder)

    def append_metrics(self, trial_id: str, rows: list[dict[str, Any]]) -> None:
        """Append optimizer steps to the metrics of a trial."""
        self._check_present()
        folder = self._trial_folder(trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        with naming_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    def write_trial(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Write the results of a trial's items and then its record, which finishes the trial."""
        self._check_present()
        folder = self._trial_folder(trial.id)
        if outcome.items:
            write_items(folder / "items.json", outcome.items)
        write_json(folder / TRIAL_FILE, trial.model_dump(mode="json"))

    def write_front(self, front: Front) -> None:
        """Write the front and the choice."""
        self._check_present()
        write_json(self.path / "front.json", front.model_dump(mode="json"))

    def _trial_folder(self, trial_id: str) -> Path:
        return self.path / "trials" / trial_id

    def _check_present(self) -> None:
        """Raise `FileNotFoundError` if the run was removed; writing would make another folder."""
        if not (self.path / EXPERIMENT_FILE).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))


@contextmanager
def locked_run(path: Path) -> Iterator[RunWriter]:
    """Hold the run folder for writing. `InvalidInput` names the process that holds it already."""
    with exclusive_lock(path / LOCK_FILE, "one search at a time writes a run"):
        for folder in (path, *path.glob("trials/*")):
            remove_abandoned(folder)
        yield RunWriter(path)


def _trial_row(trial: Trial, *, on_front: bool, chosen: bool) -> dict[str, Any]:
    card = trial.scorecard
    return {
        "id": trial.id,
        "status": trial.status,
        "proposed_by": trial.proposed_by,
        "domain": trial.domain,
        "domain_se": card.select.domain_se if card else None,
        "general": trial.general,
        "general_se": card.select.general_se if card else None,
        "reported_domain": card.report.domain if card else None,
        "reported_domain_se": card.report.domain_se if card else None,
        "reported_general": card.report.general if card else None,
        "reported_general_se": card.report.general_se if card else None,
        "on_front": on_front,
        "chosen": chosen,
        **{name: getattr(trial.recipe, name) for name in RECIPE_COLUMNS},
        "domain_share": trial.recipe.domain_share,
        "general_share": trial.recipe.general_share,
        **{f"share:{share.source}": share.share for share in trial.recipe.mixture.portions},
        **{name: getattr(trial.cost, name) if trial.cost else None for name in COST_COLUMNS},
        "reason": trial.reason,
    }


def _read_experiment(file: Path) -> tuple[Experiment, RunIdentity]:
    """Read the experiment and the hashes of what its numbers depend on."""
    if not is_file(file):
        raise InvalidInput(
            file=file,
            key="the run folder",
            found="no experiment.json",
            rule="a folder with the experiment.json of a run",
            fix="name a folder that `sweepcp search --out` wrote",
        )
    fix = "restore the file from a backup, or search into a new folder"
    record = read_record(ExperimentRecord, file, fix=fix)
    return validate(Experiment, record.experiment, file), record.identity


def _read_base(file: Path) -> BaseRecord:
    return read_record(
        BaseRecord, file, fix="restore the file from a backup, or remove it to score the base again"
    )


def _trial_folders(trials: Path) -> list[Path]:
    """Return what is in the folder of all trials, ordered by name."""
    if not trials.exists():
        return []
    _check_folder(trials)
    return [trials / name for name in sorted(os.listdir(trials))]  # noqa: PTH208  # the fast one


def _item_counts(base: BaseRecord) -> list[tuple[str, str, int]]:
    """Return the name, the unit and the number of items of each member."""
    return [(member.name, member.unit, len(member.document)) for member in base.items]


def _read_trial(file: Path, items: list[tuple[str, str, int]] | None) -> Trial:
    """Read the record of a trial, which was scored on `items`: see `_item_counts`."""
    trial = read_record(Trial, file, fix=_trial_fix(file))
    folder = file.parent.name
    if trial.id != folder:
        raise InvalidInput(
            file=file,
            key="id",
            found=trial.id,
            rule=f"{folder}, as the folder of the trial is called",
            fix="rename the folder, or move it out of the run if it is a copy",
        )
    if items is not None and trial.scorecard is not None:
        with located(file):
            _check_items(trial.scorecard, items, fix=_trial_fix(file))
    return trial


def _check_items(card: Scorecard, expected: list[tuple[str, str, int]], *, fix: str) -> None:
    """Raise `InvalidInput` unless a trial was scored on the items of the base."""
    halves = zip(card.select.members, card.report.members, strict=False)
    found = [(one.name, one.unit, one.items + other.items) for one, other in halves]
    for number, (ours, theirs) in enumerate(zip_longest(found, expected)):
        if ours != theirs:
            raise InvalidInput(
                key=f"scorecard.members.{number}",
                found=ours,
                rule=f"{theirs}: name, unit and number of items as in base.json",
                fix=fix,
            )


def _trial_fix(file: Path) -> str:
    return f"restore the file from a backup, or remove {file.parent} to run the trial again"


def _unfinished_trials(folders: Sequence[Path], finished: set[str]) -> dict[str, int]:
    """Return the steps that each started, unfinished trial has logged; other names are skipped."""
    steps = {}
    for path in folders:
        if TRIAL_NAME.fullmatch(path.name) and path.name not in finished:
            _check_folder(path)
            steps[path.name] = _count_lines(path / METRICS_FILE)
    return steps


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InvalidInput(
            file=path,
            key="the folder",
            found="no folder",
            rule="a folder, as `sweepcp search` makes it",
            fix="restore it from a backup, or remove what is in its place",
        )


def _count_lines(file: Path) -> int:
    return read_bytes(file, fix=_trial_fix(file)).count(b"\n") if file.exists() else 0
