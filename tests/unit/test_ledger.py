"""The ledger of a search, without Ray: reports come in the order that a test states."""

import logging
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.space import Point, Range, Space, WeightedSource, recipe_at
from sweepcp.errors import BaseNotScored, InvalidInput
from sweepcp.runs.front import pareto_front
from sweepcp.runs.run_folder import RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, Cost, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search import ledger as ledger_module
from sweepcp.search import proposals
from sweepcp.search.base_scores import BaseScoreCache
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.proposals import PointSampler
from sweepcp.search.worker_io import WorkerReport
from sweepcp.training.loop import StepMetrics
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


def open_ledger(
    folder: Path,
    trials: int,
    *,
    retries: int = 0,
    retry_failed: bool = False,
    cache: BaseScoreCache | None = None,
) -> TrialLedger:
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
        retries=retries,
        retry_failed=retry_failed,
        cache=cache,
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
    propose = PointSampler(SPACE, reference=ReferencePoint(), seed=0).propose
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


def test_what_is_the_same_for_all_trials_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counts: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any, **settings: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **settings)

        monkeypatch.setattr(module, name, counted)

    run_one_by_one(tmp_path, 20, at_most=8)
    count(ledger_module, "BaseComparison")
    count(proposals, "frozen_trial")
    run_one_by_one(tmp_path, 20, at_most=12)
    # A finished trial is converted once: eight when the search resumes, and each of the others.
    assert counts == {"BaseComparison": 1, "frozen_trial": 20}


def test_invalid_input_ends_the_search_and_no_trial_is_recorded(tmp_path: Path):
    run_one_by_one(tmp_path, 1, at_most=1)
    ledger = open_ledger(tmp_path, 6)
    for key in ("a", "b"):
        assert ledger.start_trial(key) is not None
    errors = [InvalidInput(found=number, rule="a rule", fix="a fix") for number in (1, 2)]
    for key, error in zip(("a", "b"), errors, strict=True):
        ledger.record_report(key, WorkerReport([], None, error))
    assert ledger.error is errors[0]
    ledger.record_failure("a", "killed")
    assert ledger.start_trial("c") is None
    assert [trial.number for trial in read_run(tmp_path).trials] == [0]


def step(number: int) -> StepMetrics:
    return StepMetrics(number, 0.1, 2.0, 1.0, {"code": 8}, {"domain": 2.0})


def test_a_trial_whose_worker_was_lost_runs_again_and_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    ledger = open_ledger(tmp_path, 6, retries=1)
    score_base(ledger)
    first = ledger.start_trial("a")
    ledger.start_trial("b")
    assert first is not None
    ledger.record_report("a", WorkerReport([step(1), step(2)], None))
    ledger.record_failure("a", "the actor died\nkilled by SIGKILL", lost=True)
    message = (
        "0000: its worker was lost; it starts again from its first step (retry 1 of 1). "
        "killed by SIGKILL"
    )
    assert caplog.messages == [message]
    assert read_run(tmp_path).trials == []
    again = ledger.start_trial("c")
    assert again == replace(first, retries=1)
    ledger.record_report("c", WorkerReport([step(1)], None))
    ledger.record_report("c", report(outcome_at(first.proposal.point)))
    (trial,) = read_run(tmp_path).trials
    assert (trial.number, trial.status, trial.retries) == (0, "done", 1)
    assert [row["step"] for row in read_run(tmp_path).read_steps("0000")] == [1]
    assert ledger.start_trial("d").number == 2  # type: ignore[union-attr]


def test_a_trial_fails_after_its_retries_and_at_once_when_its_worker_raised(tmp_path: Path):
    ledger = open_ledger(tmp_path, 2, retries=2)
    score_base(ledger)
    for key in "abc":
        assert ledger.start_trial(key).number == 0  # type: ignore[union-attr]
        assert ledger.is_waiting
        assert read_run(tmp_path).trials == []
        ledger.record_failure(key, "killed", lost=True)
    assert ledger.start_trial("d").number == 1  # type: ignore[union-attr]
    ledger.record_failure("d", "RuntimeError: no such kernel")
    assert not ledger.is_waiting
    lost, raised = read_run(tmp_path).trials
    assert (lost.status, lost.reason, lost.retries) == ("failed", "killed", 2)
    assert (raised.status, raised.retries) == ("failed", 0)


def test_a_base_whose_worker_was_lost_is_scored_again(tmp_path: Path):
    ledger = open_ledger(tmp_path, 2, retries=1)
    assert ledger.claim_base("base")
    ledger.record_failure("base", "killed", lost=True)
    assert ledger.error is None
    assert ledger.is_waiting
    assert ledger.claim_base("again")
    ledger.record_failure("again", "killed", lost=True)
    assert isinstance(ledger.error, BaseNotScored)
    assert not ledger.is_waiting


def test_failed_trials_run_again_at_their_points_and_keep_their_records_meanwhile(tmp_path: Path):
    ledger = open_ledger(tmp_path, 7)
    score_base(ledger)
    for number in range(7):
        running = ledger.start_trial(str(number))
        assert running is not None
        if number in (1, 6):
            ledger.record_report(str(number), WorkerReport([step(1), step(2)], None))
            ledger.record_failure(str(number), "OutOfMemoryError: CUDA")
        else:
            ledger.record_report(str(number), report(outcome_at(running.proposal.point)))
    files = sorted(tmp_path.glob("trials/*/trial.json"))
    before = {file: file.read_bytes() for file in files}
    records = read_run(tmp_path).by_id
    assert open_ledger(tmp_path, 7).start_trial("none") is None

    ledger = open_ledger(tmp_path, 7, retry_failed=True)
    again = [ledger.start_trial(key) for key in "ab"]
    assert ledger.start_trial("c") is None
    for running, name in zip(again, ("0001", "0006"), strict=True):
        assert running is not None
        assert (running.id, running.proposal.point) == (name, records[name].point)
        assert running.recipe == records[name].recipe
    ledger.record_report("a", WorkerReport([step(1)], None))
    assert {file: file.read_bytes() for file in files} == before
    ledger.record_report("a", report(outcome_at(records["0001"].point)))
    ledger.record_failure("b", "OutOfMemoryError: again")
    after = read_run(tmp_path)
    assert after.by_id["0001"].status == "done"
    assert after.by_id["0006"].reason == "OutOfMemoryError: again"
    assert [row["step"] for row in after.read_steps("0001")] == [1]
    kept = [file for file in files if file.parent.name not in ("0001", "0006")]
    assert all(file.read_bytes() == before[file] for file in kept)


def test_a_base_that_cannot_be_scored_ends_the_search_and_leaves_no_empty_folder(tmp_path: Path):
    ledger = open_ledger(tmp_path, 6)
    ledger.claim_base("base")
    ledger.start_trial("a")
    ledger.record_failure("base", "\x1b[36mValueError\x1b[0m: no such model")
    assert isinstance(ledger.error, BaseNotScored)
    assert str(ledger.error) == "ValueError: no such model"
    assert ledger.start_trial("b") is None
    assert not (tmp_path / "trials").exists()


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


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path):
    folder = tmp_path / "run"
    ledger = open_ledger(folder, 3)
    score_base(ledger)
    trial = ledger.start_trial("a")
    assert trial is not None
    shutil.rmtree(folder)
    for action in (
        partial(ledger.record_report, "a", WorkerReport([step(1)], None)),
        partial(ledger.record_report, "a", report(outcome_at(trial.proposal.point))),
        partial(ledger.writer.write_base, base_record()),
        partial(
            ledger.writer.write_front, pareto_front([], ChoiceRule(knee=True), ReferencePoint())
        ),
    ):
        with pytest.raises(FileNotFoundError) as error:
            action()
        assert error.value.filename == str(folder)
        assert not folder.exists()
