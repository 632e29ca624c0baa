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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from sweepcp.errors import BadInput
from sweepcp.files import alone, write_json, write_text
from sweepcp.front import Front, Reference, Rule, front
from sweepcp.scorecard import Record, write_items
from sweepcp.trial import Base, Outcome, Trial

if TYPE_CHECKING:
    import pandas

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Run:
    """A run folder, read. `trials` are the finished ones, in the order of their numbers."""

    path: Path
    experiment: dict[str, Any]
    """The experiment with every default filled in."""
    texts: dict[str, str]
    """Source → fingerprint of its texts."""
    base: Base | None
    trials: list[Trial]

    @property
    def rule(self) -> Rule:
        """The experiment's rule of choice."""
        choose = {k: v for k, v in self.experiment["choose"].items() if k != "reference"}
        return Rule.model_validate_json(json.dumps(choose))

    def front(self, rule: Rule | None = None) -> Front:
        """The front of the finished trials and the choice, by the experiment's rule or another."""
        reference = Reference.model_validate(self.experiment["choose"]["reference"])
        return front(self.trials, rule or self.rule, reference)

    def to_pandas(self, rule: Rule | None = None) -> "pandas.DataFrame":
        """One row a trial: id, status, proposer, recipe fields, shares by source, scores on both halves in %, cost."""
        import pandas

        return pandas.DataFrame(self.rows(rule))

    def rows(self, rule: Rule | None = None) -> list[dict[str, Any]]:
        """What `to_pandas` shows, as plain dictionaries."""
        result = self.front(rule)
        return [_row(t, t.id in result.ids, t.id == result.choice.id) for t in self.trials]


def _row(trial: Trial, on_front: bool, chosen: bool) -> dict[str, Any]:
    recipe = trial.recipe.model_dump(mode="json", exclude={"mixture", "betas"})
    card = trial.scorecard
    return {
        "id": trial.id,
        "status": trial.status,
        "proposed_by": trial.proposed_by,
        "domain": trial.domain,
        "general": trial.general,
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


def load_run(path: str | Path) -> Run:
    """Read a run folder. Raises `BadInput` when it is none, or when a record in it is torn or of another version."""
    folder = Path(path)
    content = _read(folder / "experiment.json")
    files = sorted((folder / "trials").glob("*/trial.json"))
    trials = sorted((_record(Trial, file) for file in files), key=lambda t: t.number)
    base = folder / "base.json"
    return Run(
        path=folder,
        experiment=content["experiment"],
        texts=content["texts"],
        base=_record(Base, base) if base.exists() else None,
        trials=trials,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "name a folder that `sweepcp search --out` wrote"
        raise BadInput(path, "the run folder", error.strerror, "a run folder holds experiment.json", fix) from None
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


def _torn(path: Path, error: ValueError) -> BadInput:
    what = str(error).splitlines()
    return BadInput(
        path,
        "the record",
        " ".join(what[:3]),
        "a complete record of this version of sweepcp",
        f"restore the file from a copy; or remove {path.parent} if that trial may run again",
    )


class RunWriter:
    """The one writer of a run folder: the driver that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, experiment: dict[str, Any], texts: dict[str, str]) -> None:
        write_json(self.path / "experiment.json", {"format": 1, "experiment": experiment, "texts": texts})

    def base(self, base: Base) -> None:
        write_text(self.path / "base.json", base.model_dump_json() + "\n")

    def begin(self, trial_id: str) -> None:
        """Clear what an unfinished attempt at the trial left."""
        folder = self.path / "trials" / trial_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def metrics(self, trial_id: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / "trials" / trial_id / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def trial(self, trial: Trial, outcome: Outcome) -> None:
        folder = self.path / "trials" / trial.id
        if outcome.items:
            write_items(folder / "items.json", outcome.items)
        write_json(folder / "trial.json", trial.model_dump(mode="json"))

    def front(self, result: Front) -> None:
        write_json(self.path / "front.json", result.model_dump(mode="json"))


@contextmanager
def lock(path: Path) -> Iterator[RunWriter]:
    """Hold the run folder for writing; `BadInput` names the holder if another process has it."""
    with alone(path / "driver.lock", "one search at a time writes a run"):
        yield RunWriter(path)
