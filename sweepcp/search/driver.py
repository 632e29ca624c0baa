"""The search itself: Ray Tune runs what is left of the budget, and every trial that ends becomes a file at once.

The files are the one truth. Ray Tune's own state lives in a temporary folder and is never restored: a search that is
continued reads the files and starts a fresh `Tuner` for the numbers that are missing.
"""

import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher

from sweepcp.errors import BadInput, BaseNotScored, Stopped
from sweepcp.recipe import Recipe
from sweepcp.run import RunWriter
from sweepcp.scorecard import scorecard
from sweepcp.search import Budget
from sweepcp.search.propose import Proposal, propose
from sweepcp.search.watch import Watch
from sweepcp.space import Point, Space
from sweepcp.train import Row
from sweepcp.trial import Base, Outcome, Trial

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
REPORT_SECONDS = 1.0
"""How often a running trial tells the driver of its steps."""


class BenchLike(Protocol):
    """What a worker holds: see `sweepcp.bench.Bench`."""

    def base(self) -> Base: ...

    def run(self, recipe: Recipe) -> Iterator[Row | Outcome]: ...


@dataclass(frozen=True)
class Draft:
    """A trial that runs."""

    number: int
    proposal: Proposal
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.number:04d}"


@dataclass(frozen=True)
class Report:
    """What a worker tells the driver: the steps since the last report, and how the trial ended, once it has.

    Or the base's scores, when it was asked for them.
    """

    rows: list[Row]
    outcome: Outcome | Base | None


class Worker(tune.Trainable):
    """A warm actor: the bench stays, the recipes come and go."""

    def setup(  # type: ignore[override]  # Ray Tune passes what `with_parameters` was given
        self, config: dict[str, Any], make_bench: Callable[[], BenchLike]
    ) -> None:
        self.make_bench = make_bench
        self.bench: BenchLike | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next recipe in the same process."""
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate_json(config["recipe"]) if config["recipe"] else None
        self.events: Iterator[Row | Outcome | Base] | None = None

    def step(self) -> dict[str, Any]:
        """Advance the trial by about a second.

        What a bench raises ends this process: the trial is recorded as failed, and the next one starts in a new process
        (a device that ran out of memory may be in any state).
        """
        rows: list[Row] = []
        outcome: Outcome | Base | None = None
        self.bench = self.bench or self.make_bench()
        if self.events is None:
            self.events = self.bench.run(self.recipe) if self.recipe else iter([self.bench.base()])
        until = time.monotonic() + REPORT_SECONDS
        for event in self.events:
            if isinstance(event, Outcome | Base):
                outcome = event
                break
            rows.append(event)
            if time.monotonic() > until:
                break
        return {"report": Report(rows, outcome), "done": outcome is not None}


class Proposals(Searcher):
    """Gives Ray Tune the missing trials, one at a time."""

    def __init__(self, book: "Book") -> None:
        super().__init__()
        self.book = book

    def suggest(self, trial_id: str) -> Any:
        if self.book.wants_base(trial_id):
            return {"recipe": None}
        draft = self.book.open(trial_id)
        return {"recipe": draft.recipe.model_dump_json()} if draft else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn here: the next proposal reads the book."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folder has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: `Tuner.restore` is not used."""


class Recorder(tune.Callback):
    """Writes down what Ray Tune hears from the workers."""

    def __init__(self, book: "Book") -> None:
        self.book = book

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.book.hear(trial.trial_id, result["report"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.book.lose(trial.trial_id, Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "")


class Book:
    """The state of a search: finished trials, trials that run, numbers to come. The only writer of trial files."""

    def __init__(
        self,
        writer: RunWriter,
        watch: Watch,
        base: Base | None,
        finished: Iterable[Trial],
        space: Space,
        recipe_at: Callable[[Point], Recipe],
        trials: int,
        seed: int,
    ) -> None:
        self.writer, self.watch, self.base = writer, watch, base
        self.space, self.recipe_at, self.seed = space, recipe_at, seed
        self.finished = {t.number: t for t in finished}
        self.running: dict[str, Draft] = {}
        self.base_key: str | None = None
        self.base_error: str | None = None
        self.waiting: list[tuple[Draft, Outcome]] = []
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

    def open(self, key: str) -> Draft | None:
        """Start the next missing trial under Ray Tune's key for it; None when there is none."""
        if not self.to_come:
            return None
        number = self.to_come.popleft()
        trials = [self.finished[n] for n in sorted(self.finished)]
        pending = [draft.proposal.point for draft in self.running.values()]
        proposal = propose(self.space, trials, pending, number, self.seed)
        draft = Draft(number, proposal, self.recipe_at(proposal.point))
        self.running[key] = draft
        self.writer.begin(draft.id)
        self.watch.trial_started(draft.id, proposal.point, proposal.by)
        return draft

    def hear(self, key: str, report: Report) -> None:
        """Keep a report; the last one of a trial closes it, as soon as there is a base to compare it with."""
        if key == self.base_key:
            self._compare_with(report.outcome)
            return
        draft = self.running[key]
        if report.rows:
            self.writer.metrics(draft.id, [row._asdict() for row in report.rows])
            self.watch.trial_stepped(draft.id, report.rows[-1].step, draft.recipe.steps)
        if isinstance(report.outcome, Outcome):
            self._close(key, report.outcome)

    def lose(self, key: str, error: str) -> None:
        """Close a trial whose bench raised or whose process died."""
        reason = COLOUR.sub("", error).strip() or "the worker process was lost"
        if key == self.base_key:
            self._give_up(reason)
        elif key in self.running:
            self._close(key, Outcome(status="failed", reason=reason))

    def _compare_with(self, base: Outcome | Base | None) -> None:
        if not isinstance(base, Base):
            return
        try:
            scorecard(list(base.items), list(base.items))
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

    def _close(self, key: str, outcome: Outcome) -> None:
        draft = self.running.pop(key)
        if self.base is None:
            self.waiting.append((draft, outcome))
        else:
            self._record(draft, outcome, self.base)

    def _record(self, draft: Draft, outcome: Outcome, base: Base) -> None:
        card = None
        if outcome.status == "done":
            try:
                card = scorecard(list(outcome.items), list(base.items))
            except ValueError as error:
                outcome = Outcome(status="failed", reason=f"its scores cannot be compared with the base's: {error}")
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


@contextmanager
def cluster(address: str | None, budget: Budget) -> Iterator[int]:
    """A Ray of this machine's own, or the cluster at `address`; yields how many trials run at a time."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are shown and recorded by the book
    started = not ray.is_initialized()
    if started:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        local: dict[str, Any] = {"include_dashboard": False, "num_cpus": os.cpu_count()}
        try:
            ray.init(address=address or "local", **quiet, **({} if address else local))
        except (ConnectionError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise BadInput(
                "--address", "--address", address, f"a Ray cluster that answers ({first})", "check it"
            ) from None
    try:
        yield _room(budget, ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _room(budget: Budget, resources: dict[str, float]) -> int:
    need = {"CPU": budget.cpus_per_trial, "GPU": budget.gpus_per_trial}
    for name, amount in need.items():
        if amount > resources.get(name, 0):
            key = f"budget.{name.lower()}s_per_trial"
            has = f"{resources.get(name, 0):g}"
            raise BadInput(
                "the machine or cluster", key, amount, f"at most the {has} {name}s there are", f"lower {key}"
            )
    room = min(int(resources[name] // amount) for name, amount in need.items() if amount)
    return min(room, budget.concurrency or room)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`: what is finished stays, the same command goes on from there.

    To be entered after Ray has started, which installs a handler of its own.
    """

    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt  # the one that Ray's own calls let through

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if came:  # whatever Ray made of it
            raise Stopped(came[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def search(book: Book, make_bench: Callable[[], BenchLike], budget: Budget, concurrency: int) -> None:
    """Run the trials that are missing; the book writes each as it ends.

    Raises `BaseNotScored` when there is nothing to compare them with.
    """
    if not book.to_come:
        return
    state = tempfile.mkdtemp(prefix="sweepcp-tune-")
    resources = {"cpu": float(budget.cpus_per_trial), "gpu": float(budget.gpus_per_trial)}
    trainable = tune.with_resources(tune.with_parameters(Worker, make_bench=make_bench), resources)
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=Proposals(book),
                num_samples=len(book.to_come) + (book.base is None),
                max_concurrent_trials=concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=state,
                verbose=0,
                callbacks=[Recorder(book)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if book.base_error is not None:
        raise BaseNotScored(book.base_error)
    if book.running or book.to_come:
        missing = [draft.id for draft in book.running.values()] + [f"{n:04d}" for n in book.to_come]
        raise RuntimeError(f"Ray Tune ended without trials {', '.join(missing)}; the same command goes on with them")
