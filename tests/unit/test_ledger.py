"""The ledger of a search, without Ray: reports come in the order that a test states."""

import logging
import shutil
from functools import partial
from pathlib import Path

import pytest

from sweepcp.config.choice import ReferencePoint
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.space import Point, Range, Space, WeightedSource, recipe_at
from sweepcp.errors import BaseNotScored, InvalidInput
from sweepcp.runs.run_folder import RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, Cost, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.proposals import propose_point
from sweepcp.search.worker_io import WorkerReport
from sweepcp.util.progress import NoProgress
from tests.make import experiment, items
from tests.make_run import scores_at

SPACE = Space(
    lr_fraction=Range(low=0.01, high=1.0, scale="log"),
    general_share=Range(low=0.0, high=1.0, scale="sqrt"),
)
SOURCES = [
    WeightedSource(name="code", role="domain", language="python", weight=1),
    WeightedSource(name="docs", role="general", language="en", weight=1),
]


def make_recipe(point: Point) -> Recipe:
    training = TrainingSettings(seq_len=4, batch_tokens=8)
    return recipe_at(point, SOURCES, training, tokens=80, seed=0)


def open_ledger(folder: Path, trials: int) -> TrialLedger:
    """Start or resume a search of so many trials as `run_search` does."""
    writer = RunWriter(folder)
    if not (folder / "experiment.json").exists():
        writer.start(experiment(space=SPACE), RunIdentity())
    run = read_run(folder)
    return TrialLedger(
        writer,
        progress=NoProgress(),
        base=run.base,
        finished=run.trials,
        space=SPACE,
        reference=ReferencePoint(),
        make_recipe=make_recipe,
        trials=trials,
        seed=0,
    )


def scores(domain: float, general: float) -> tuple[ItemScores, ...]:
    return (items("domain", [100 - domain] * 4), items("general", [100 - general] * 4))


def base_record(**changes: object) -> BaseRecord:
    values: dict[str, object] = {
        "model": "a base",
        "parameters": 1,
        "max_lr": 1.0,
        "items": scores(0, 0),
        "environment": {"device": "cpu"},
        "versions": {},
    }
    return BaseRecord.model_validate(values | changes)


def report(outcome: TrialOutcome | BaseRecord) -> WorkerReport:
    return WorkerReport(metrics=[], outcome=outcome)


def outcome_at(point: Point) -> TrialOutcome:
    """Answer as an analytic trial does, which diverges at a high LR."""
    if float(point["lr_fraction"]) > 0.5:
        return TrialOutcome(status="diverged", reason="step 2 of 10: loss nan")
    return TrialOutcome(status="done", items=scores(*scores_at(point)))


def score_base(ledger: TrialLedger) -> None:
    if ledger.claim_base("base"):
        ledger.record_report("base", report(base_record()))


def run_one_by_one(folder: Path, trials: int, *, at_most: int) -> None:
    """Run missing trials one after the other; then the search dies while the next one runs."""
    ledger = open_ledger(folder, trials)
    score_base(ledger)
    for _ in range(at_most):
        trial = ledger.start_trial("worker")
        assert trial is not None
        ledger.record_report("worker", report(outcome_at(trial.proposal.point)))
    ledger.start_trial("worker")


def test_a_resumed_search_proposes_what_the_undisturbed_one_did(tmp_path: Path):
    run_one_by_one(tmp_path / "whole", 14, at_most=14)
    for already in (3, 8, 11):
        folder = tmp_path / f"resumed-{already}"
        run_one_by_one(folder, 14, at_most=already)
        run_one_by_one(folder, 14, at_most=14 - already)
    expected = read_run(tmp_path / "whole").trials
    assert {trial.status for trial in expected} == {"done", "diverged"}
    for already in (3, 8, 11):
        trials = read_run(tmp_path / f"resumed-{already}").trials
        assert [trial.point for trial in trials] == [trial.point for trial in expected]


def test_trials_that_end_before_the_base_is_scored_are_recorded_when_it_is(tmp_path: Path):
    ledger = open_ledger(tmp_path, 3)
    assert ledger.claim_base("base")
    assert not ledger.claim_base("second")
    for key in ("a", "b"):
        trial = ledger.start_trial(key)
        assert trial is not None
        ledger.record_report(key, report(outcome_at(trial.proposal.point)))
    ledger.start_trial("c")
    assert read_run(tmp_path).trials == []
    ledger.record_report("base", report(base_record()))
    recorded = read_run(tmp_path).trials
    assert ledger.awaiting_base == []
    assert [trial.number for trial in recorded] == [0, 1]
    for record in recorded:
        domain, general = scores_at(record.point)
        assert record.domain == pytest.approx(domain)
        assert record.general == pytest.approx(general)


def test_a_trial_is_recorded_as_its_worker_reports_it(tmp_path: Path):
    """Its scores are those of the selection half, which has items 0 and 2."""
    ledger = open_ledger(tmp_path, 1)
    score_base(ledger)
    running = ledger.start_trial("worker")
    assert running is not None
    outcome = TrialOutcome(
        status="done",
        items=(items("domain", [90.0, 80.0] * 2), items("general", [101.0, 105.0] * 2)),
        tokens_by_source={"code": 48, "docs": 32},
        epochs_by_source={"code": 0.5, "docs": 2.0},
        cost=Cost(train_seconds=2, score_seconds=1, tokens=80, tokens_per_second=40, worker="w"),
        versions={"torch": "2"},
    )
    ledger.record_report("worker", report(outcome))
    (trial,) = read_run(tmp_path).trials
    assert (trial.domain, trial.general) == pytest.approx((10, -1))
    assert trial.scorecard is not None
    reported = (trial.scorecard.report.domain, trial.scorecard.report.general)
    assert reported == pytest.approx((20, -5))
    for name in ("status", "tokens_by_source", "epochs_by_source", "cost", "versions"):
        assert getattr(trial, name) == getattr(outcome, name)
    assert (trial.point, trial.recipe) == (running.proposal.point, running.recipe)
    assert (trial.recipe_id, trial.proposed_by) == (running.recipe.id, running.proposal.by)


def test_the_missing_numbers_are_run(tmp_path: Path):
    run_one_by_one(tmp_path, 4, at_most=3)
    shutil.rmtree(tmp_path / "trials" / "0001")
    ledger = open_ledger(tmp_path, 6)
    assert [ledger.start_trial(key).number for key in "abcd"] == [1, 3, 4, 5]  # type: ignore[union-attr]
    assert ledger.start_trial("e") is None


def test_trials_that_await_the_base_are_avoided_like_running_ones(tmp_path: Path):
    ledger = open_ledger(tmp_path, 6)
    ledger.claim_base("base")
    points = []
    for number in range(6):
        trial = ledger.start_trial(str(number))
        assert trial is not None
        points.append(trial.proposal.point)
        if number < 4:
            ledger.record_report(str(number), report(outcome_at(trial.proposal.point)))
    propose = partial(propose_point, SPACE, [], reference=ReferencePoint(), seed=0)
    assert points[4] == propose(points[:4], number=4).point != propose([], number=4).point


def test_proposals_depend_on_the_trials_and_not_on_the_order_in_which_they_end(tmp_path: Path):
    following = []
    numbers = list(range(40))
    for name, order in (("forward", numbers), ("backward", numbers[::-1])):
        ledger = open_ledger(tmp_path / name, 41)
        score_base(ledger)
        running = [ledger.start_trial(str(number)) for number in numbers]
        for number in order:
            trial = running[number]
            assert trial is not None
            ledger.record_report(str(number), report(outcome_at(trial.proposal.point)))
        following.append(ledger.start_trial("next"))
    assert following[0] == following[1]


def test_invalid_input_ends_the_search_and_no_trial_is_recorded(tmp_path: Path):
    run_one_by_one(tmp_path, 1, at_most=1)
    ledger = open_ledger(tmp_path, 6)
    for key in ("a", "b"):
        assert ledger.start_trial(key) is not None
    errors = [InvalidInput(found=number, rule="a rule", fix="a fix") for number in (1, 2)]
    for key, error in zip(("a", "b"), errors, strict=True):
        ledger.record_report(key, WorkerReport([], None, error))
    assert ledger.error is errors[0]
    assert ledger.start_trial("c") is None
    assert [trial.number for trial in read_run(tmp_path).trials] == [0]


def test_a_base_whose_worker_is_lost_ends_the_search(tmp_path: Path):
    ledger = open_ledger(tmp_path, 6)
    ledger.claim_base("base")
    ledger.start_trial("a")
    ledger.record_failure("base", "\x1b[36mValueError\x1b[0m: no such model")
    assert isinstance(ledger.error, BaseNotScored)
    assert str(ledger.error) == "ValueError: no such model"
    assert ledger.start_trial("b") is None


def test_a_base_whose_scores_have_no_error_ends_the_search(tmp_path: Path):
    ledger = open_ledger(tmp_path, 6)
    ledger.claim_base("base")
    few = (items("domain", [1.0] * 3), items("general", [1.0] * 4))
    ledger.record_report("base", report(base_record(items=few)))
    assert isinstance(ledger.error, InvalidInput)
    assert ledger.error.file == str(tmp_path / "experiment.json")
    assert ledger.error.found == "documents in the reporting half: 1"
    assert not (tmp_path / "base.json").exists()
    assert ledger.start_trial("a") is None


def test_notes_of_the_worker_that_scores_the_base_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    ledger = open_ledger(tmp_path, 6)
    ledger.claim_base("base")
    with caplog.at_level(logging.WARNING, logger="sweepcp"):
        ledger.record_report("base", report(base_record(notes=("quiz: 40 contexts were cut",))))
    assert caplog.messages == ["quiz: 40 contexts were cut"]
    base = read_run(tmp_path).base
    assert base is not None
    assert base.notes == ("quiz: 40 contexts were cut",)


def hello(**environment: str) -> WorkerReport:
    """The first report of a worker on a trial."""
    return WorkerReport(metrics=[], outcome=None, environment=environment)


def test_a_worker_of_another_kind_ends_a_resumed_search_and_no_trial(tmp_path: Path):
    ledger = open_ledger(tmp_path, 3)
    assert ledger.claim_base("base")
    ledger.record_report("base", hello(device="cpu", torch="2"))
    ledger.record_report("base", report(base_record(environment={"device": "cpu", "torch": "2"})))
    resumed = open_ledger(tmp_path, 3)
    resumed.start_trial("a")
    resumed.record_report("a", hello(device="cpu", torch="2"))
    assert resumed.error is None
    resumed.start_trial("b")
    resumed.record_report("b", hello(device="cuda", torch="2"))
    assert isinstance(resumed.error, InvalidInput)
    assert "device cuda" in str(resumed.error.found)
    assert "device cpu" in resumed.error.rule
    assert resumed.start_trial("c") is None
    assert read_run(tmp_path).trials == []


def test_two_kinds_of_workers_do_not_share_a_new_run(tmp_path: Path):
    ledger = open_ledger(tmp_path, 3)
    assert ledger.claim_base("base")
    ledger.start_trial("a")
    ledger.record_report("a", hello(device="cuda", precision="bf16"))
    ledger.record_report("base", hello(device="cpu", precision="fp32"))
    assert isinstance(ledger.error, InvalidInput)
    assert ledger.error.found == "device cpu, precision fp32"
    assert read_run(tmp_path).base is None
