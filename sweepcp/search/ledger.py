"""TODO search.ledger."""

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.config.space import Point, Space
from sweepcp.runs.run_folder import RunWriter
from sweepcp.runs.trial import BaseRecord, Trial, TrialOutcome
from sweepcp.scoring.scorecard import compare_with_base
from sweepcp.search.proposals import Proposal, propose_point
from sweepcp.training.loop import StepMetrics
from sweepcp.util.progress import Progress

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs."""

    number: int
    proposal: Proposal
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.number:04d}"


@dataclass(frozen=True)
class WorkerReport:
    """What a worker tells the driver: the steps since the last report, and how the trial ended, once it has.

    Or the base's scores, when it was asked for them.
    """

    rows: list[StepMetrics]
    outcome: TrialOutcome | BaseRecord | None


class TrialLedger:
    """The state of a search: finished trials, trials that run, numbers to come. The only writer of trial files."""

    def __init__(
        self,
        writer: RunWriter,
        watch: Progress,
        base: BaseRecord | None,
        finished: Iterable[Trial],
        space: Space,
        recipe_at: Callable[[Point], Recipe],
        trials: int,
        seed: int,
    ) -> None:
        self.writer, self.watch, self.base = writer, watch, base
        self.space, self.recipe_at, self.seed = space, recipe_at, seed
        self.finished = {t.number: t for t in finished}
        self.running: dict[str, RunningTrial] = {}
        self.base_key: str | None = None
        self.base_error: str | None = None
        self.waiting: list[tuple[RunningTrial, TrialOutcome]] = []
        self.to_come = deque(n for n in range(trials) if n not in self.finished)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles what it is given, for a `Tuner.restore` that never comes."""
        return {}

    def wants_base(self, key: str) -> bool:
        """Whether the worker under this key is to score the base: the first one is, in a run that has no base yet."""
        if self.base is None and self.base_key is None:
            self.base_key = key
            return True
        return False

    def open(self, key: str) -> RunningTrial | None:
        """Start the next missing trial under Ray Tune's key for it; None when there is none."""
        if not self.to_come:
            return None
        number = self.to_come.popleft()
        trials = [self.finished[n] for n in sorted(self.finished)]
        pending = [draft.proposal.point for draft in self.running.values()]
        proposal = propose_point(self.space, trials, pending, number, self.seed)
        draft = RunningTrial(number, proposal, self.recipe_at(proposal.point))
        self.running[key] = draft
        self.writer.begin(draft.id)
        self.watch.trial_started(draft.id, proposal.point, proposal.by)
        return draft

    def hear(self, key: str, report: WorkerReport) -> None:
        """Keep a report; the last one of a trial closes it, as soon as there is a base to compare it with."""
        if key == self.base_key:
            self._compare_with(report.outcome)
            return
        draft = self.running[key]
        if report.rows:
            self.writer.metrics(draft.id, [row._asdict() for row in report.rows])
            self.watch.trial_stepped(draft.id, report.rows[-1].step, draft.recipe.steps)
        if isinstance(report.outcome, TrialOutcome):
            self._close(key, report.outcome)

    def lose(self, key: str, error: str) -> None:
        """Close a trial whose bench raised or whose process died."""
        reason = ANSI_COLOUR.sub("", error).strip() or "the worker process was lost"
        if key == self.base_key:
            self._give_up(reason)
        elif key in self.running:
            self._close(key, TrialOutcome(status="failed", reason=reason))

    def _compare_with(self, base: TrialOutcome | BaseRecord | None) -> None:
        if not isinstance(base, BaseRecord):
            return
        try:
            compare_with_base(list(base.items), list(base.items))
        except ValueError as error:
            self._give_up(str(error))
            return
        self.writer.base(base)
        self.base = base
        for draft, outcome in self.waiting:
            self._record(draft, outcome, base)

    def _give_up(self, reason: str) -> None:
        """Without a base nothing can be compared: start no further trial, and let `search` raise."""
        self.base_error = reason
        self.to_come.clear()

    def _close(self, key: str, outcome: TrialOutcome) -> None:
        draft = self.running.pop(key)
        if self.base is None:
            self.waiting.append((draft, outcome))
        else:
            self._record(draft, outcome, self.base)

    def _record(self, draft: RunningTrial, outcome: TrialOutcome, base: BaseRecord) -> None:
        card = None
        if outcome.status == "done":
            try:
                card = compare_with_base(list(outcome.items), list(base.items))
            except ValueError as error:
                outcome = TrialOutcome(
                    status="failed",
                    reason=f"its scores cannot be compared with the base's: {error}",
                )
        trial = Trial(
            id=draft.id,
            number=draft.number,
            status=outcome.status,
            reason=outcome.reason,
            proposed_by=draft.proposal.by,
            point=draft.proposal.point,
            recipe=draft.recipe,
            recipe_id=draft.recipe.id,
            domain=card.select.domain if card else None,
            general=card.select.general if card else None,
            scorecard=card,
            tokens_by_source=outcome.tokens_by_source,
            epochs_by_source=outcome.epochs_by_source,
            cost=outcome.cost,
            versions=outcome.versions,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.writer.trial(trial, outcome)
        self.finished[trial.number] = trial
        self.watch.trial_finished(trial)
