"""The run folder, which is the API between the stages.

experiment.json            what was asked for, resolved, with the fingerprints of the texts
base.json                  the base's scores at step 0
trials/<id>/metrics.jsonl  a line a step
trials/<id>/items.json     results of single items
trials/<id>/trial.json     written last: the trial is finished
front.json                 front and choice by the experiment's rule
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError

from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.config.space import Space
from sweepcp.config.validation import validate
from sweepcp.errors import InvalidInput
from sweepcp.runs.front import Choice, Front, pareto_front
from sweepcp.runs.trial import BaseRecord, Trial, TrialOutcome
from sweepcp.scoring.scorecard import write_items
from sweepcp.util.files import write_json, write_text
from sweepcp.util.locks import exclusive_lock, is_locked
from sweepcp.util.records import Record

LOCK_FILE = "driver.lock"
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Run:
    """A run folder, read. `trials` are the finished ones, in the order of their numbers."""

    path: Path
    experiment: dict[str, Any]
    """The experiment with every default filled in."""
    texts: dict[str, str]
    """Source → fingerprint of its texts."""
    base: BaseRecord | None
    trials: list[Trial]
    unfinished: dict[str, int]
    """Trials that have begun and not ended → optimizer steps that they have written down."""
    writing: bool
    """Whether a search writes the folder now."""
    rule: ChoiceRule
    """How one trial of the front is chosen: as the experiment says, or by `choosing`."""

    @cached_property
    def front(self) -> Front:
        """The front of the finished trials, and the choice."""
        return pareto_front(
            self.trials,
            self.rule,
            ReferencePoint.model_validate(self.experiment["choose"]["reference"]),
        )

    def choosing(self, **rule: Any) -> Self:
        """The run with another rule of choice; as it is when none is stated.

        `max_regression=1.0`, `knee=True` or `weights={"domain": 1, "general": 2}`; raises `BadInput` for another.
        """
        return (
            replace(self, rule=validate(ChoiceRule, rule, "the rule of choice")) if rule else self
        )

    def choose(self, **rule: Any) -> Choice:
        """What a rule chooses, see `choosing`; its `id` is None when no trial meets the rule."""
        return self.choosing(**rule).front.choice

    @cached_property
    def space(self) -> Space:
        """What was searched."""
        return validate(Space, self.experiment["space"], self.path / "experiment.json")

    @cached_property
    def by_id(self) -> dict[str, Trial]:
        """Trials by their ids."""
        return {trial.id: trial for trial in self.trials}

    @property
    def done(self) -> list[Trial]:
        """The trials that were scored."""
        return [trial for trial in self.trials if trial.status == "done"]

    @property
    def chosen(self) -> Trial | None:
        """The trial that the rule chooses."""
        return self.by_id.get(self.front.choice.id or "")

    @property
    def chosen_or_nearest(self) -> Trial | None:
        """The chosen trial, or the one of least regression when none meets the rule; None when no trial is done."""
        return self.chosen or self.by_id.get(self.front.choice.nearest or "")

    @property
    def state(self) -> Literal["finished", "running", "interrupted"]:
        """Finished: every trial of the budget has ended."""
        wanted = self.experiment["budget"]["trials"]
        if sum(t.number < wanted for t in self.trials) == wanted:
            return "finished"
        return "running" if self.writing else "interrupted"

    def steps(self, trial_id: str) -> list[dict[str, Any]]:
        """The steps of a trial as they were written down: step, LR, loss, norm of the gradient, tokens by source.

        A line that is being written is left out.
        """
        file = self.folder(trial_id) / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def folder(self, trial_id: str) -> Path:
        """Where a trial's files are."""
        return self.path / "trials" / trial_id

    def rows(self) -> list[dict[str, Any]]:
        """A row a trial: id, status, proposer, recipe, shares by source, scores on both halves in %, cost."""
        return [_row(t, t.id in self.front.ids, t.id == self.front.choice.id) for t in self.trials]


def _row(trial: Trial, on_front: bool, chosen: bool) -> dict[str, Any]:
    recipe = trial.recipe.model_dump(mode="json", exclude={"mixture", "betas"})
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
        **recipe,
        "domain_share": trial.recipe.domain_share,
        "general_share": trial.recipe.general_share,
        **{f"share:{p.source}": p.share for p in trial.recipe.mixture.portions},
        "train_seconds": trial.cost.train_seconds if trial.cost else None,
        "score_seconds": trial.cost.score_seconds if trial.cost else None,
        "reason": trial.reason,
    }


def read_run(path: str | Path) -> Run:
    """Read a run folder. Raises `BadInput` when it is none, or when a record in it is torn or of another version."""
    folder = Path(path)
    content = _read(folder / "experiment.json")
    files = sorted((folder / "trials").glob("*/trial.json"))
    trials = sorted((_record(Trial, file) for file in files), key=lambda t: t.number)
    ended = {trial.id for trial in trials}
    begun = (
        path
        for path in sorted((folder / "trials").glob("*"))
        if path.is_dir() and path.name not in ended
    )
    base = folder / "base.json"
    choose = {k: v for k, v in content["experiment"]["choose"].items() if k != "reference"}
    return Run(
        path=folder,
        experiment=content["experiment"],
        texts=content["texts"],
        base=_record(BaseRecord, base) if base.exists() else None,
        trials=trials,
        unfinished={path.name: _lines(path / "metrics.jsonl") for path in begun},
        writing=is_locked(folder / LOCK_FILE),
        rule=ChoiceRule.model_validate_json(json.dumps(choose)),
    )


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "name a folder that `sweepcp search --out` wrote"
        raise InvalidInput(
            file=path,
            key="the run folder",
            found=error.strerror,
            rule="a run folder holds experiment.json",
            fix=fix,
        ) from None
    except ValueError as error:
        raise _torn(path, error) from None
    if not isinstance(content, dict):
        raise _torn(path, ValueError("not a JSON object"))
    return content


def _record(kind: type[R], path: Path) -> R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _torn(path, error) from None


def _torn(path: Path, error: ValueError) -> InvalidInput:
    what = str(error).splitlines()
    return InvalidInput(
        file=path,
        key="the record",
        found=" ".join(what[:3]),
        rule="a complete record of this version of sweepcp",
        fix=f"restore the file from a copy; or remove {path.parent} if that trial may run again",
    )


class RunWriter:
    """The one writer of a run folder: the driver that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, experiment: dict[str, Any], texts: dict[str, str]) -> None:
        write_json(
            self.path / "experiment.json", {"format": 1, "experiment": experiment, "texts": texts}
        )

    def base(self, base: BaseRecord) -> None:
        write_text(self.path / "base.json", base.model_dump_json() + "\n")

    def begin(self, trial_id: str) -> None:
        """Clear what an unfinished attempt at the trial left."""
        folder = self.path / "trials" / trial_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def metrics(self, trial_id: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / "trials" / trial_id / "metrics.jsonl").open(
            "a", encoding="utf-8"
        ) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def trial(self, trial: Trial, outcome: TrialOutcome) -> None:
        folder = self.path / "trials" / trial.id
        if outcome.items:
            write_items(folder / "items.json", outcome.items)
        write_json(folder / "trial.json", trial.model_dump(mode="json"))

    def front(self, result: Front) -> None:
        write_json(self.path / "front.json", result.model_dump(mode="json"))


@contextmanager
def locked_run(path: Path) -> Iterator[RunWriter]:
    """Hold the run folder for writing; `BadInput` names the holder if another process has it."""
    with exclusive_lock(path / LOCK_FILE, "one search at a time writes a run"):
        yield RunWriter(path)
