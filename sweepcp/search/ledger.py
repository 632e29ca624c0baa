"""The state of a search: which trials have finished, which are running, and which are to come."""

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sweepcp.config.choice import ReferencePoint
from sweepcp.config.recipe import Recipe
from sweepcp.config.space import Point, Space
from sweepcp.errors import BaseNotScored, InvalidInput, located
from sweepcp.runs.memory_use import Halving, smallest_halving
from sweepcp.runs.run_folder import EXPERIMENT_FILE, RunWriter
from sweepcp.runs.trial import BaseRecord, Trial, TrialOutcome, check_environment, id_of_trial
from sweepcp.scoring.scorecard import BaseComparison, Scorecard, check_splits
from sweepcp.search.base_scores import BaseScoreCache
from sweepcp.search.proposals import PointSampler, Proposal
from sweepcp.search.worker_io import WorkerReport
from sweepcp.util.progress import Progress

logger = logging.getLogger(__name__)
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TRIALS = "trials"
"""The progress task that counts trials."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has been proposed and has not finished."""

    number: int
    proposal: Proposal
    recipe: Recipe
    retries: int = 0
    """How often it has been started again, because its worker was lost."""
    micro_batch: int | None = None
    """The largest that fits into GPU memory; None if no trial of the run has run out of it."""

    @property
    def id(self) -> str:
        """The name of the trial's folder: its number with four digits."""
        return id_of_trial(self.number)


class TrialLedger:
    """Records the trials of a search and their states. The only writer of trial files.

    Ray Tune knows a trial by a key of its own; a number is given to it when it starts.
    """

    def __init__(
        self,
        writer: RunWriter,
        *,
        progress: Progress,
        base: BaseRecord | None,
        finished: Iterable[Trial],
        space: Space,
        reference: ReferencePoint,
        make_recipe: Callable[[Point], Recipe],
        trials: int,
        seed: int,
        retries: int = 0,
        retry_failed: bool = False,
        cache: BaseScoreCache | None = None,
    ) -> None:
        """Take over the finished trials of a run.

        Args:
            writer: The run folder.
            progress: Receives the steps of each trial, and the number of finished trials.
            base: The scores of the base; None if they are yet to be measured.
            finished: The trials that the run folder holds.
            space: The axes and anchors, for proposals.
            reference: The scores that the sampler is told of a diverged trial.
            make_recipe: Point of the space → recipe of a trial.
            trials: Number of trials in the budget.
            seed: The experiment's seed.
            retries: How often a trial is started again after its worker was lost.
            retry_failed: Whether finished trials that failed run again, at the same points. The
                record of each is kept until its new one replaces it.
            cache: Where scores of the base may be, and are kept.
        """
        self.writer, self.progress, self.base = writer, progress, base
        self.make_recipe = make_recipe
        self.sampler = PointSampler(space, reference=reference, seed=seed)
        self.retries = retries
        self.proposed: dict[int, Proposal] = {}
        """Of the trials that run again, at the same points."""
        self.finished: set[int] = set()
        """Their numbers: their records are in the run folder."""
        kept = []
        for trial in finished:
            if retry_failed and trial.status == "failed":
                self.proposed[trial.number] = Proposal(trial.point, trial.proposed_by)
            else:
                kept.append(trial)
                self._take_finished(trial)
        self.losses: Counter[int | None] = Counter()
        """How often the worker of a trial was lost; under None, that which scored the base."""
        self.environment = base.environment if base is not None else None
        self.comparison: BaseComparison | None = None
        """With the base; None before the first trial is compared with it."""
        self.cache = cache
        self.cached_base = cache.read() if cache is not None and base is None else None
        """Scores of the base that are taken over once a worker reports their environment."""
        halving = smallest_halving(kept)
        self.micro_batch = halving.micro_batch if halving else None
        self.running: dict[str, RunningTrial] = {}
        self.base_key: str | None = None
        self.error: Exception | None = None
        self.awaiting_base: list[tuple[RunningTrial, TrialOutcome]] = []
        self.total = trials
        self.to_come = deque(n for n in range(trials) if n not in self.finished)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles its search algorithm for a `Tuner.restore`.

        It is never called, because the run folder holds everything.
        """
        return {}

    def claim_base(self, key: str) -> bool:
        """Return whether the worker under this key scores the base.

        The first one does, in a run whose base has not been scored, unless its scores are cached.
        """
        if self.base is None and self.base_key is None and self.cached_base is None:
            self.base_key = key
            return True
        return False

    def start_trial(self, key: str) -> RunningTrial | None:
        """Start the next missing trial under Ray Tune's key for it; return None if none is left."""
        if not self.to_come:
            return None
        number = self.to_come.popleft()
        proposal = self.proposed.get(number) or self._propose(number)
        recipe = self.make_recipe(proposal.point)
        trial = RunningTrial(
            number,
            proposal,
            recipe,
            retries=self.losses[number],
            micro_batch=self.micro_batch,
        )
        self.running[key] = trial
        self.writer.begin_trial(trial.id)
        description = f"{proposal.by}: {format_point(proposal.point)}"
        self.progress.update(trial.id, done=0, total=trial.recipe.steps, detail=description)
        return trial

    def _take_finished(self, trial: Trial) -> None:
        self.finished.add(trial.number)
        self.sampler.tell(trial)

    def _propose(self, number: int) -> Proposal:
        unscored = [*self.running.values(), *(trial for trial, _ in self.awaiting_base)]
        pending = [trial.proposal.point for trial in unscored]
        return self.sampler.propose(pending, number=number)

    @property
    def is_waiting(self) -> bool:
        """Whether a worker is running that may yet be lost, and whose work has to be repeated."""
        return self.error is None and (self.base is None or bool(self.running))

    def record_report(self, key: str, report: WorkerReport) -> None:
        """Record a progress report.

        The final report finishes the trial once the base has been scored. Invalid input that a
        worker reports ends the search, as does a worker whose scores would not compare.
        """
        error = report.error or self._foreign_environment(report)
        if error is not None:
            self.end_search(error)
            return
        if report.environment is not None and self.cached_base is not None:
            self._take_cached_base(self.cached_base, report.environment)
        if key == self.base_key:
            if isinstance(report.outcome, BaseRecord):
                self._set_base(report.outcome)
                if self.cache is not None:
                    self.cache.write(report.outcome)
            return
        trial = self.running[key]
        if report.metrics:
            rows = [metrics._asdict() for metrics in report.metrics]
            self.writer.append_metrics(trial.id, rows)
            last = report.metrics[-1].step
            self.progress.update(trial.id, done=last, total=trial.recipe.steps)
        if isinstance(report.outcome, TrialOutcome):
            self._finish(key, report.outcome)

    def _foreign_environment(self, report: WorkerReport) -> InvalidInput | None:
        """Return an error if a worker's scores do not compare with those of the run.

        A run's first worker sets what the others are compared with.
        """
        if report.environment is None:
            return None
        if self.environment is None:
            self.environment = report.environment
        try:
            check_environment(
                report.environment,
                self.environment,
                where="a worker",
                fix="run the search on workers like the first one, or pass another --out",
            )
        except InvalidInput as error:
            return error
        return None

    def record_failure(self, key: str, error: str, *, lost: bool = False) -> None:
        """Mark a trial as failed after its worker raised, or run it again if its worker was lost.

        What a worker raises, it would most likely raise again; that its process or node was lost
        says nothing about the trial.

        Args:
            key: Ray Tune's key for the trial.
            error: The traceback, or why the worker was lost.
            lost: Whether the worker's process or its node was lost.
        """
        if self.error is not None:
            return  # workers that are stopped may fail in any way
        if self.cached_base is not None:
            # Every worker may: then none would report the environment that the scores wait for.
            logger.warning("the base is scored again: a worker ended before its first report")
            self.cached_base = None
        reason = ANSI_COLOUR.sub("", error).strip() or "the worker process was lost"
        if key == self.base_key:
            if lost and self._repeat(None, "the base", reason):
                self.base_key = None
            else:
                self.end_search(BaseNotScored(reason))
        elif key in self.running:
            trial = self.running[key]
            if lost and self._repeat(trial.number, trial.id, reason):
                del self.running[key]
                self.proposed[trial.number] = trial.proposal
                self.to_come.appendleft(trial.number)
            else:
                self._finish(key, TrialOutcome(status="failed", reason=reason))

    def _repeat(self, number: int | None, name: str, reason: str) -> bool:
        """Count a lost worker, and return whether its work is to be repeated."""
        if self.losses[number] == self.retries:
            return False
        self.losses[number] += 1
        logger.warning(
            "%s: its worker was lost; it starts again from its first step (retry %d of %d). %s",
            name,
            self.losses[number],
            self.retries,
            reason.splitlines()[-1].strip(),
        )
        return True

    def _take_cached_base(self, base: BaseRecord, environment: dict[str, str]) -> None:
        """Take the base's scores from the cache if a worker would compute the same ones.

        If not, the next worker that is free scores the base.
        """
        self.cached_base = None
        names = environment.keys() | base.environment.keys()
        changed = [n for n in sorted(names) if environment.get(n) != base.environment.get(n)]
        if changed:
            logger.warning(
                "the base is scored again: its cached scores are of another environment (%s)",
                ", ".join(changed),
            )
            return
        logger.info("the base was scored before: its scores are taken from the cache")
        self._set_base(base)

    def _set_base(self, base: BaseRecord) -> None:
        """Record the base's scores, and finish the trials that waited for them."""
        try:
            with located(self.writer.path / EXPERIMENT_FILE, "experiment.suites"):
                check_splits(base.items)
        except InvalidInput as error:
            self.end_search(error)
            return
        for note in base.notes:
            logger.warning("%s", note)
        self.writer.write_base(base)
        self.base = base
        for trial, outcome in self.awaiting_base:
            self._record(trial, outcome, base)
        self.awaiting_base.clear()

    def end_search(self, error: Exception) -> None:
        """Start no further trial; the driver stops those that are running and raises the error.

        The first error counts: every worker meets the same invalid input.
        """
        self.error = self.error or error
        self.to_come.clear()

    def _finish(self, key: str, outcome: TrialOutcome) -> None:
        trial = self.running.pop(key)
        self._remember_micro_batch(trial, outcome)
        if self.base is None:
            self.awaiting_base.append((trial, outcome))
        else:
            self._record(trial, outcome, self.base)

    def _remember_micro_batch(self, trial: RunningTrial, outcome: TrialOutcome) -> None:
        """Start later trials at the micro batch to which this one was halved, if it was."""
        halved_to = outcome.cost.halved_to if outcome.cost else None
        if halved_to is None or (self.micro_batch is not None and self.micro_batch <= halved_to):
            return
        self.micro_batch = halved_to
        logger.warning("%s", Halving(halved_to, trial.id))

    def _record(self, running: RunningTrial, outcome: TrialOutcome, base: BaseRecord) -> None:
        card = None
        if outcome.status == "done":
            try:
                self.comparison = self.comparison or BaseComparison(base.items)
                card = self.comparison.compare(outcome.items)
            except ValueError as error:
                reason = f"its scores cannot be compared with those of the base: {error}"
                outcome = TrialOutcome(status="failed", reason=reason)
        trial = _trial_record(running, outcome, card)
        self.writer.write_trial(trial, outcome)
        self._take_finished(trial)
        self.progress.finish(trial.id)
        self.progress.update(TRIALS, done=len(self.finished), total=self.total)
        level = logging.INFO if trial.status == "done" else logging.WARNING
        logger.log(level, "%s", describe_trial(trial))


def _trial_record(running: RunningTrial, outcome: TrialOutcome, card: Scorecard | None) -> Trial:
    return Trial(
        id=running.id,
        number=running.number,
        status=outcome.status,
        reason=outcome.reason,
        retries=running.retries,
        proposed_by=running.proposal.by,
        point=running.proposal.point,
        recipe=running.recipe,
        recipe_id=running.recipe.id,
        domain=card.select.domain if card else None,
        general=card.select.general if card else None,
        scorecard=card,
        tokens_by_source=outcome.tokens_by_source,
        epochs_by_source=outcome.epochs_by_source,
        cost=outcome.cost,
        versions=outcome.versions,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def describe_trial(trial: Trial) -> str:
    """Return one line about a finished trial: status, scores in % or reason, point, proposer."""
    parts = [f"{trial.id} {trial.status:<8}"]
    if trial.status == "done":
        parts.append(f"domain {trial.domain:+6.2f} %  general {trial.general:+6.2f} %")
    parts.append(f"{format_point(trial.point)}  ({trial.proposed_by})")
    if trial.short_reason:
        parts.append(trial.short_reason)
    return "  ".join(parts)


def format_point(point: Point) -> str:
    """Return a point as `name value` pairs, numbers with four significant digits."""
    pairs = []
    for name, value in point.items():
        pairs.append(f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}")
    return ", ".join(pairs)
