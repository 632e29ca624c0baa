"""Search with the real Ray Tune and Optuna, and a trial runner whose front is known."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from sweepcp import load_run
from sweepcp.config.choice import ReferencePoint
from sweepcp.config.recipe import Recipe
from sweepcp.errors import BaseNotScored, InvalidInput, OutOfDeviceMemory
from sweepcp.runs.memory_use import smallest_halving
from sweepcp.runs.trial import BaseRecord, Cost, TrialOutcome
from sweepcp.search.proposals import PointSampler
from sweepcp.training.loop import StepMetrics
from tests.integration import analytic

SAMPLER = PointSampler(analytic.SPACE, reference=ReferencePoint(), seed=0)
FIRST = [SAMPLER.propose([], number=number).point for number in range(5)]
START = [float(point["lr_fraction"]) for point in FIRST]
"""LR fractions of the anchor and the four starting points."""


@pytest.fixture(autouse=True, scope="module")
def ray_of_two() -> Iterator[None]:
    """One Ray for the module: starting it is most of a small search's time."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def test_the_known_front_is_found_and_every_trial_recorded(tmp_path: Path):
    finished = analytic.run(tmp_path, 20)
    run = load_run(tmp_path)
    assert [t.number for t in run.trials] == list(range(20))
    assert sorted(finished.numbers) == list(range(20))
    assert [t.proposed_by for t in run.trials] == ["anchor"] + ["quasi-random"] * 4 + ["tpe"] * 15
    for t in run.trials:
        assert (t.domain, t.general) == pytest.approx(
            analytic.answer(t.recipe.lr_fraction, t.recipe.general_share)
        )
        assert (tmp_path / "trials" / t.id / "metrics.jsonl").read_text().count("\n") == 1
    known = np.array([analytic.answer(0.3, s) for s in np.linspace(0, 1, 50)])
    best = [t for t in run.trials if t.id in run.front.ids]
    gaps = [np.abs(known - [t.domain, t.general]).sum(axis=1).min() for t in best]
    assert min(gaps) < 1.5


def test_each_kind_of_failure_costs_its_own_trial_only(tmp_path: Path):
    faults = dict(zip(START, ["raise", "die", "nan", "infinite", "foreign"], strict=True))
    analytic.run(tmp_path, 8, faults=faults)
    run = load_run(tmp_path)
    got = {t.number: (t.status, t.reason or "") for t in run.trials}
    assert [got[n][0] for n in range(8)] == [
        "failed",
        "failed",
        "diverged",
        "failed",
        "failed",
        "done",
        "done",
        "done",
    ]
    for number, text in enumerate(
        ["out of memory", "died", "loss nan", "finite", "cannot be compared"]
    ):
        assert text in got[number][1]
    assert [trial.retries for trial in run.trials] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert set(run.front.ids) <= {"0005", "0006", "0007"}


class ForgetfulRunner(analytic.AnalyticRunner):
    """Halves from what it is told, or from 16, to 8, and runs out of memory at the second LR."""

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        *metrics, outcome = super().run(recipe)
        yield from metrics
        if recipe.lr_fraction == START[1]:
            raise OutOfDeviceMemory("GPU memory ran out at micro batch 1: fix: use a smaller proxy")
        cost = Cost(
            train_seconds=1,
            score_seconds=1,
            tokens=80,
            tokens_per_second=80,
            worker=str(os.getpid()),
            first_micro_batch=micro_batch or 16,
            micro_batch=min(micro_batch or 16, 8),
        )
        assert isinstance(outcome, TrialOutcome)
        yield outcome.model_copy(update={"cost": cost})


@pytest.mark.slow
def test_memory_that_runs_out_ends_its_trial_and_process_and_leaves_a_size_to_the_others(
    tmp_path: Path,
):
    for trials in (3, 4):  # the second search resumes
        make_runner = partial(ForgetfulRunner, {})
        analytic.run(tmp_path, trials, concurrency=1, make_runner=make_runner)
    run = load_run(tmp_path)
    assert [trial.status for trial in run.trials] == ["done", "failed", "done", "done"]
    assert [trial.retries for trial in run.trials] == [0, 0, 0, 0]
    assert run.trials[1].short_reason == (
        "sweepcp.errors.OutOfDeviceMemory: GPU memory ran out at micro batch 1: fix: use a smaller "
        "proxy"
    )
    costs = [trial.cost for trial in run.trials if trial.cost]
    assert [(cost.first_micro_batch, cost.micro_batch) for cost in costs] == [
        (16, 8),
        (8, 8),
        (8, 8),
    ]
    assert costs[0].worker != costs[1].worker
    assert smallest_halving(run.trials) == (8, "0000")


@pytest.mark.slow
def test_all_trials_failing_is_no_front(tmp_path: Path):
    analytic.run(tmp_path, 3, faults={0.0: "raise"})
    run = load_run(tmp_path)
    assert {t.status for t in run.trials} == {"failed"}
    assert run.front.choice.id is None


@dataclass
class PatientRunner(analytic.AnalyticRunner):
    """Scores the base, badly, while a trial runs that lasts for 100 seconds and leaves a mark."""

    folder: Path
    error: Exception

    def score_base(self) -> BaseRecord:
        while not (self.folder / "began").exists():
            time.sleep(0.05)
        raise self.error

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        (self.folder / "began").touch()
        for step in range(1, 1001):
            time.sleep(0.1)
            yield StepMetrics(step, 0.1, 2.0, 1.0, {"code": 8}, {"domain": 2.0})
        (self.folder / "ended").touch()
        yield from super().run(recipe, micro_batch=micro_batch)


@dataclass
class MortalRunner(analytic.AnalyticRunner):
    """Is killed when it first scores the base, and when it first runs each trial."""

    folder: Path

    def die_once(self, name: str) -> None:
        if not (self.folder / name).exists():
            (self.folder / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def score_base(self) -> BaseRecord:
        self.die_once("base")
        return super().score_base()

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        self.die_once(recipe.id)
        yield from super().run(recipe, micro_batch=micro_batch)


@pytest.mark.slow
def test_the_base_and_trials_whose_workers_are_killed_are_run_again(tmp_path: Path):
    folder = tmp_path / "marks"
    folder.mkdir()
    analytic.run(tmp_path / "run", 2, make_runner=partial(MortalRunner, {}, folder))
    run = load_run(tmp_path / "run")
    assert [(trial.status, trial.retries) for trial in run.trials] == [("done", 1), ("done", 1)]
    assert all(len(run.read_steps(trial.id)) == 1 for trial in run.trials)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.slow
def test_a_run_folder_that_disappears_ends_the_search_with_its_name(tmp_path: Path):
    class Removing(analytic.FinishedTrials):
        def finish(self, task: str) -> None:
            super().finish(task)
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(FileNotFoundError) as error:
        analytic.run(tmp_path / "run", 6, progress=Removing())
    assert error.value.filename == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


INVALID = InvalidInput(
    file="suites/quiz.jsonl", key="item 3", found=-1, rule="an index of a choice", fix="correct it"
)


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("no such model"), BaseNotScored), (INVALID, InvalidInput)]
)
def test_trials_that_run_are_stopped_when_the_base_cannot_be_scored(
    tmp_path: Path, error: Exception, expected: type[Exception]
):
    with pytest.raises(expected, match=r"no such model|item 3"):
        analytic.run(tmp_path, 3, make_runner=partial(PatientRunner, {}, tmp_path, error))
    assert (tmp_path / "began").exists()
    assert not (tmp_path / "ended").exists()
    assert load_run(tmp_path).trials == []


def refuse_by_folder() -> analytic.AnalyticRunner:
    raise InvalidInput(found=str(Path.cwd()), rule="a folder", fix="name another")


def test_workers_run_where_the_search_was_started(tmp_path: Path):
    """Task files may name their data relative to that folder."""
    with pytest.raises(InvalidInput) as caught:
        analytic.run(tmp_path, 1, make_runner=refuse_by_folder)
    assert caught.value.found == str(Path.cwd())


def refuse_to_build() -> analytic.AnalyticRunner:
    raise INVALID


def test_invalid_input_met_by_workers_ends_the_search_with_it(tmp_path: Path):
    with pytest.raises(InvalidInput) as caught:
        analytic.run(tmp_path, 3, make_runner=refuse_to_build)
    error = caught.value
    assert (error.file, error.key, error.found) == ("suites/quiz.jsonl", "item 3", -1)
    assert (error.rule, error.fix) == ("an index of a choice", "correct it")
    assert load_run(tmp_path).trials == []


@pytest.mark.slow
def test_one_worker_and_one_seed_give_the_same_trials(tmp_path: Path):
    found = []
    for name in ("a", "b"):
        analytic.run(tmp_path / name, 8, concurrency=1)
        found.append([(t.point, t.domain, t.general) for t in load_run(tmp_path / name).trials])
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_longer_budget_continues_where_the_shorter_ended(tmp_path: Path):
    analytic.run(tmp_path / "whole", 9, concurrency=1)
    analytic.run(tmp_path / "parts", 6, concurrency=1)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("trials/*/trial.json")}
    finished = analytic.run(tmp_path / "parts", 9, concurrency=1)
    assert finished.numbers == [6, 7, 8]
    assert all(p.stat().st_mtime_ns == before for p, before in stamps.items())
    points = [[t.point for t in load_run(tmp_path / name).trials] for name in ("whole", "parts")]
    assert points[0] == points[1]


@pytest.mark.slow
def test_a_gap_is_filled_and_nothing_is_repeated(tmp_path: Path):
    analytic.run(tmp_path, 6)
    (tmp_path / "trials" / "0002" / "trial.json").unlink()
    finished = analytic.run(tmp_path, 7)
    assert sorted(finished.numbers) == [2, 6]
    assert [t.number for t in load_run(tmp_path).trials] == list(range(7))


def test_workers_of_another_kind_do_not_resume_a_run(tmp_path: Path):
    analytic.run(tmp_path, 2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    with pytest.raises(InvalidInput) as error:
        analytic.run(tmp_path, 4, faults={0.0: "another device"})
    assert error.value.found == "device cuda"
    assert "device cpu" in error.value.rule
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.json")} == before
