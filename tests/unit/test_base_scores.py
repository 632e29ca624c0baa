"""Cached scores of bases: what they depend on, and when a search takes them over."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.suites import Suites
from sweepcp.errors import BaseNotScored
from sweepcp.runs.run_folder import RunIdentity, read_run
from sweepcp.runs.trial import BaseRecord
from sweepcp.scoring.spec import ScoringSpec
from sweepcp.search import base_scores
from sweepcp.search.base_scores import BaseScoreCache, base_score_cache
from sweepcp.search.devices import TrialSlots
from sweepcp.search.worker_io import WorkerReport, WorkerSpec
from sweepcp.util.gpus import Gpu
from tests.make import items
from tests.unit.test_ledger import base_record, open_ledger, outcome_at, report

SUITES: dict[str, Any] = {
    "domain": [{"held_out": "code", "chars": 1000, "weight": 2}],
    "general": [{"held_out": "docs"}, {"task": "quiz", "path": "/tasks", "few_shot": 1}],
}
IDENTITY = RunIdentity(
    sources={"code": "c", "docs": "d"},
    base={"weights": "w", "config": "c", "tokenizer": "t"},
    tasks={"quiz": "q"},
    stores={"code": "1", "docs": "2", "more": "3"},
)
LOCAL = TrialSlots(gpu_share=0.0, concurrency=1)
ENVIRONMENT = {"device": "cpu", "prompts": "p", "torch": "2"}


def spec_of(suites: dict[str, Any] = SUITES, **changes: Any) -> WorkerSpec:
    scoring: dict[str, Any] = {
        "suites": Suites.model_validate_json(json.dumps(suites)),
        "stores": (),
        "languages": {"code": "python", "docs": "en", "more": "de"},
        "generated_tasks": None,
        "seq_len": 48,
        "packed": True,
        "precision": "fp32",
        "scoring": "shared",
    }
    worker: dict[str, Any] = {
        "base": BaseSpec(path="/base", max_lr=1.0),
        "model": "/base",
        "stores": (),
        "micro_batch": 3,
        "precision": "fp32",
        "attention": "auto",
        "recompute": False,
        "compile": False,
        "threads": 1,
        "device": "cpu",
        "gpu_share": 0.0,
    }
    of_scoring = {key: changes.pop(key) for key in list(changes) if key in scoring}
    return WorkerSpec(**worker | changes, scoring=ScoringSpec(**scoring | of_scoring))


cache_of = partial(base_score_cache, identity=IDENTITY, slots=LOCAL, on_cluster=False)


def with_suites(role: str, member: int, **changes: Any) -> dict[str, Any]:
    suites = json.loads(json.dumps(SUITES))
    suites[role][member] |= changes
    return suites


def scored(**changes: Any) -> BaseRecord:
    given = (
        items("domain", [8.0] * 8, name="held_out_code", weight=2.0),
        items("general", [4.0] * 8, name="held_out_docs"),
    )
    values = {"model": "/base", "items": given, "environment": ENVIRONMENT}
    return base_record(**values | changes)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))


def test_scores_are_those_that_were_written():
    cache = cache_of(spec_of())
    assert cache.read() is None
    cache.write(scored())
    assert cache_of(spec_of()).read() == scored()


@pytest.mark.parametrize(
    "changed",
    [
        lambda: cache_of(spec_of(scoring="exact")),
        lambda: cache_of(spec_of(seq_len=64)),
        lambda: cache_of(spec_of(packed=False)),
        lambda: cache_of(spec_of(precision="bf16")),
        lambda: cache_of(spec_of(attention="eager")),
        lambda: cache_of(spec_of(threads=2)),
        lambda: cache_of(spec_of(device="cuda")),
        lambda: cache_of(spec_of(languages={"code": "c", "docs": "en"})),
        lambda: cache_of(spec_of(with_suites("domain", 0, chars=999))),
        lambda: cache_of(spec_of(with_suites("general", 0, items=8))),
        lambda: cache_of(spec_of(with_suites("general", 1, few_shot=2))),
        lambda: cache_of(spec_of({**SUITES, "general": SUITES["general"][:1]})),
        lambda: cache_of(spec_of({"domain": SUITES["general"], "general": SUITES["domain"]})),
        lambda: cache_of(spec_of(), identity=replace_hash("base", "weights")),
        lambda: cache_of(spec_of(), identity=replace_hash("base", "config")),
        lambda: cache_of(spec_of(), identity=replace_hash("base", "tokenizer")),
        lambda: cache_of(spec_of(), identity=replace_hash("tasks", "quiz")),
        lambda: cache_of(spec_of(), identity=replace_hash("stores", "docs")),
        lambda: cache_of(spec_of(), on_cluster=True),
        lambda: cache_of(spec_of(), slots=replace(LOCAL, gpus=(Gpu("H100", None, None),))),
    ],
)
def test_other_inputs_have_an_entry_of_their_own(changed: Any):
    cache = cache_of(spec_of())
    cache.write(scored())
    assert changed().read() is None
    assert cache.read() is not None


def replace_hash(part: str, name: str) -> RunIdentity:
    return IDENTITY.model_copy(update={part: getattr(IDENTITY, part) | {name: "other"}})


def test_other_versions_and_another_cpu_have_an_entry_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    cache_of(spec_of()).write(scored())
    with monkeypatch.context() as patch:
        patch.setattr(base_scores, "package_versions", lambda: {"torch": "3"})
        assert cache_of(spec_of()).read() is None
    monkeypatch.setattr(base_scores, "cpu_model", lambda: "another")
    assert cache_of(spec_of()).read() is None


def test_what_the_scores_do_not_depend_on_is_that_of_the_search():
    cache_of(spec_of()).write(scored())
    suites = with_suites("domain", 0, weight=5)
    suites["general"][1]["path"] = "/elsewhere"
    moved = spec_of(
        suites,
        base=BaseSpec(path="/moved", max_lr=0.5),
        model="/moved",
        micro_batch=1,
        compile=True,
        recompute=True,
    )
    unused = IDENTITY.model_copy(update={"stores": IDENTITY.stores | {"more": "other"}})
    found = cache_of(moved, identity=unused).read()
    assert found is not None
    assert (found.model, found.max_lr) == ("/moved", 0.5)
    assert [scores.weight for scores in found.items] == [5.0, 1.0]
    assert found.items[0].amount == scored().items[0].amount


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_an_unusable_entry_is_reported_and_replaced(
    content: str | None, caplog: pytest.LogCaptureFixture
):
    cache = cache_of(spec_of())
    if content is None:  # that of other inputs under this name
        content = base_scores.CachedBaseScores(key={}, base=scored()).model_dump_json()
    cache.path.parent.mkdir(parents=True)
    cache.path.write_text(content)
    assert cache.read() is None
    assert "the base is scored again" in caplog.text
    assert str(cache.path) in caplog.text
    cache.write(scored())
    assert cache.read() == scored()


def test_a_cache_that_cannot_be_read_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert cache_of(spec_of()).read() is None
    assert "the base is scored again" in caplog.text
    assert "Permission denied" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_end_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "cache").write_text("a file")
    cache_of(spec_of()).write(scored())
    assert "not cached" in caplog.text


def first_report(environment: dict[str, str]) -> WorkerReport:
    return WorkerReport([], None, environment=environment)


def search_with(cache: BaseScoreCache, folder: Path, environment: dict[str, str]) -> bool:
    """Run the first trial of a search; return whether the base had to be scored."""
    ledger = open_ledger(folder, 1, cache=cache)
    scores_first = ledger.claim_base("base")
    if scores_first:
        ledger.record_report("base", first_report(environment))
        ledger.record_report("base", report(scored()))
    trial = ledger.start_trial("worker")
    assert trial is not None
    ledger.record_report("worker", first_report(environment))
    scores_again = ledger.claim_base("again")
    outcome = outcome_at(trial.proposal.point)
    if outcome.items:
        outcome = outcome.model_copy(update={"items": scored().items})
    ledger.record_report("worker", report(outcome))
    if scores_again:
        ledger.record_report("again", report(scored(environment=environment)))
    assert ledger.error is None
    assert not ledger.is_waiting
    return scores_first or scores_again


def test_a_second_search_takes_the_scores_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    cache = cache_of(spec_of())
    assert search_with(cache, tmp_path / "first", ENVIRONMENT)
    assert "taken from the cache" not in caplog.text
    assert not search_with(cache, tmp_path / "second", ENVIRONMENT)
    assert caplog.text.count("taken from the cache") == 1
    first, second = (tmp_path / name / "base.json" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert len(read_run(tmp_path / "second").trials) == 1


@pytest.mark.parametrize(
    "environment",
    [
        ENVIRONMENT | {"prompts": "other"},
        ENVIRONMENT | {"items": "i"},
        ENVIRONMENT | {"scoring": "x"},
    ],
)
def test_workers_of_another_environment_score_the_base_again(
    environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache = cache_of(spec_of())
    cache.write(scored())
    assert search_with(cache, tmp_path / "run", environment)
    assert "of another environment" in caplog.text
    base = read_run(tmp_path / "run").base
    assert base is not None
    assert base.environment == environment
    assert cache.read() == base


@pytest.mark.parametrize("lost", [False, True])
def test_a_worker_that_fails_before_its_environment_is_known_leaves_the_base_to_the_next(
    lost: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache = cache_of(spec_of())
    cache.write(scored())
    ledger = open_ledger(tmp_path / "run", 1, cache=cache)
    assert not ledger.claim_base("base")
    assert ledger.start_trial("worker") is not None
    ledger.record_failure("worker", "RuntimeError: no library", lost=lost)
    assert "the base is scored again" in caplog.text
    assert ledger.claim_base("base")
    ledger.record_failure("base", "RuntimeError: no library")
    assert isinstance(ledger.error, BaseNotScored)
    assert not ledger.is_waiting


def test_a_run_that_has_a_base_does_not_read_the_cache(tmp_path: Path):
    cache = cache_of(spec_of())
    cache.write(scored())
    assert search_with(cache, tmp_path / "run", ENVIRONMENT) is False
    cache.path.write_text("{")
    assert open_ledger(tmp_path / "run", 2, cache=cache).cached_base is None
