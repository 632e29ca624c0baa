"""What a search hands to its workers and its ledger is what the experiment states."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.tune.utils.callback import _create_default_callbacks

from sweepcp.corpora.repetition import matched_fraction
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import RunWriter, read_run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.search import cluster, ray_driver, search
from sweepcp.search.base_scores import BaseScoreCache
from sweepcp.search.devices import TrialSlots
from sweepcp.search.ledger import TrialLedger
from sweepcp.search.search import prepare_worker
from sweepcp.search.worker_io import WorkerReport
from sweepcp.util.gpus import Gpu
from sweepcp.util.progress import NoProgress
from tests.make import experiment, write_store
from tests.make_run import write_run

CHANGES = (
    "seed=11",
    "training.micro_batch=2",
    "training.precision=fp32",
    "training.attention=eager",
    "training.recompute=true",
    "training.compile=true",
    "budget.cpus_per_trial=3",
    "budget.trials=6",
    "choose.reference={domain: -3, general: -8}",
)
SLOTS = TrialSlots(gpu_share=0.25, concurrency=5)
OLD_GPU = Gpu("T4", 15.0, (7, 5))


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, TokenStore]:
    made = {
        name: write_store(tmp_path, name, [list(range(100))] * count)
        for name, count in (("python-docs", 300), ("python-code", 700))
    }
    monkeypatch.setattr(search, "build_stores", lambda *_, **__: made)
    monkeypatch.setattr(search, "check_base", lambda *_, **__: None)
    monkeypatch.setattr(search, "find_or_pretrain_base", lambda *_, **__: "the base")
    monkeypatch.setattr(search, "experiment_scoring_spec", lambda *_, **__: "scoring")
    return made


@pytest.mark.usefixtures("stores")
def test_workers_have_the_settings_of_the_experiment():
    searched = experiment(*CHANGES, "budget.tokens=20_480")
    spec, tokens = prepare_worker(searched, {}, {}, slots=SLOTS, progress=NoProgress())
    assert tokens == {"python-docs": 30_000.0, "python-code": 70_000.0}
    assert (spec.micro_batch, spec.precision, spec.threads) == (2, "fp32", 3)
    assert (spec.attention, spec.recompute, spec.compile) == ("eager", True, True)
    assert (spec.device, spec.gpu_share) == ("cuda", 0.25)
    assert (spec.model, spec.base) == ("the base", searched.base)
    assert [store.fraction for store in spec.stores] == [1.0, 1.0]


@pytest.mark.usefixtures("stores")
def test_workers_see_the_part_of_a_source_that_matches_the_repetition():
    target = "target={tokens: 204_800, match_repetition: true}"
    searched = experiment("budget.tokens=20_480", target, "training.seq_len=16")
    spec, tokens = prepare_worker(searched, {}, {}, slots=SLOTS, progress=NoProgress())
    assert [store.fraction for store in spec.stores] == pytest.approx([0.1, 0.1])
    for store in spec.stores:
        assert store.fraction == matched_fraction(searched, store.source, tokens[store.source])


@pytest.mark.usefixtures("stores")
def test_a_source_that_would_be_repeated_too_often_is_refused():
    changes = ["budget.tokens=204_800", "sources.python-docs.beyond_max_epochs=refuse"]
    with pytest.raises(InvalidInput, match=r"up to 6\.83 epochs"):
        prepare_worker(experiment(*changes), {}, {}, slots=SLOTS, progress=NoProgress())


@pytest.mark.usefixtures("stores")
def test_the_base_is_checked_on_the_device_of_trials_before_stores_are_built(
    monkeypatch: pytest.MonkeyPatch,
):
    class Checked(Exception):
        """Raised in place of the check of the base."""

    def check(*_: object, device: str) -> None:
        raise Checked(device)

    def build(*_: object, **__: object) -> None:
        pytest.fail("a store was built first")

    monkeypatch.setattr(search, "check_base", check)
    monkeypatch.setattr(search, "build_stores", build)
    with pytest.raises(Checked, match="cuda"):
        prepare_worker(experiment(), {}, {}, slots=SLOTS, progress=NoProgress())


class Prepared(Exception):
    """Raised in place of preparing stores and base."""


@pytest.mark.parametrize(
    ("address", "slots", "recorded", "refused"),
    [
        (None, TrialSlots(0.0, 1), "cpu", None),
        # Of a cluster's GPUs, what is known is known when Ray is connected.
        ("head:6379", TrialSlots(1.0, 1, (OLD_GPU,)), "cuda", "training.precision"),
        (None, TrialSlots(1.0, 1, (OLD_GPU,)), "cpu", "device"),
        (None, TrialSlots(0.0, 1), "cuda", "device"),
    ],
)
def test_devices_are_checked_before_stores_are_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    slots: TrialSlots,
    recorded: str,
    refused: str | None,
):
    @contextmanager
    def connect(*_: object, **__: object) -> Iterator[TrialSlots]:
        yield slots

    def prepare(*_: object, **__: object) -> None:
        raise Prepared

    monkeypatch.setattr(cluster, "ray_cluster", connect)
    monkeypatch.setattr(search, "prepare_worker", prepare)
    run = read_run(write_run(tmp_path / "run", 1))
    assert run.base is not None
    base = run.base.model_copy(update={"environment": {"device": recorded}})
    run = replace(run, base=base)
    searched = experiment("training.precision=bf16")
    search_with_ray = partial(
        search._search_with_ray,
        RunWriter(run.path),
        run,
        searched,
        {},
        run.identity,
        progress=NoProgress(),
        address=address,
        retry_failed=False,
    )
    with pytest.raises(InvalidInput if refused else Prepared) as error:
        search_with_ray()
    if refused:
        assert refused in str(error.value)


def test_the_ledger_has_the_settings_of_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path, 2)
    RunWriter(tmp_path).start(experiment(*CHANGES), read_run(tmp_path).identity)
    run = read_run(tmp_path)
    ledgers: list[TrialLedger] = []

    def take(ledger: TrialLedger, _: Callable[[], Any], **settings: Any) -> None:
        ledgers.append(ledger)
        assert settings == {"budget": run.experiment.budget, "slots": SLOTS}

    monkeypatch.setattr(ray_driver, "run_trials", take)
    tokens = {"python-docs": 3e6, "python-code": 9e6}
    writer = RunWriter(tmp_path)
    spec: Any = None
    cache = BaseScoreCache(spec, {})
    search._run_missing_trials(
        writer, run, spec, tokens, slots=SLOTS, progress=NoProgress(), cache=cache
    )
    (ledger,) = ledgers
    assert ledger.cache is cache
    reference = run.experiment.choose.reference
    assert (reference.domain, reference.general) == (-3, -8)
    sampler = ledger.sampler
    assert (sampler.space, sampler.reference, sampler.seed) == (run.experiment.space, reference, 11)
    assert list(ledger.to_come) == [2, 3, 4, 5]
    assert (ledger.base, ledger.total) == (run.base, 6)
    point = run.trials[1].point
    assert ledger.make_recipe(point) == run.experiment.recipe_at(point, tokens)


def test_a_store_that_was_removed_during_the_search_is_no_invalid_input(
    stores: dict[str, TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path / "run", 2)
    run = read_run(tmp_path / "run")
    writer = RunWriter(tmp_path / "run")
    spec, tokens = prepare_worker(
        experiment("budget.tokens=20_480"), {}, {}, slots=SLOTS, progress=NoProgress()
    )

    def refuse(*_: object, **__: object) -> None:
        raise InvalidInput(file="train.idx", found="no file", rule="a rule", fix="a fix")

    monkeypatch.setattr(ray_driver, "run_trials", refuse)
    search_again = partial(
        search._run_missing_trials,
        writer,
        run,
        spec,
        tokens,
        slots=SLOTS,
        progress=NoProgress(),
        cache=BaseScoreCache(spec, {}),
    )
    with pytest.raises(InvalidInput, match=r"train\.idx"):
        search_again()
    removed = stores["python-code"].path
    shutil.rmtree(removed)
    with pytest.raises(FileNotFoundError) as error:
        search_again()
    assert error.value.filename == str(removed)


def test_ray_tune_keeps_nothing_of_a_report_and_formats_nothing_of_it(tmp_path: Path):
    run = read_run(write_run(tmp_path, 1))
    assert run.base is not None
    received = []

    class Receiver:
        def record_report(self, key: str, report: WorkerReport) -> None:
            received.append((key, report))

    outcome = TrialOutcome(status="done", items=run.base.items)
    report = WorkerReport([], outcome)
    # It formats each result for its debug log, which nobody reads.
    assert len(repr(report)) < 200
    result = {"report": report, "done": True, "trial_id": "a", "pid": 7, "config": {"recipe": "{}"}}
    callback = ray_driver.LedgerCallback(Receiver())  # type: ignore[arg-type]
    callback.on_trial_result(1, [], SimpleNamespace(trial_id="a"), result)
    assert received == [("a", report)]
    assert result == {"done": True, "trial_id": "a"}


class StoppedTrial:
    last_result: ClassVar = {"trial_id": "a"}


def test_ray_tune_prints_nothing_of_trials_that_are_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ours: Any = [ray_driver.LedgerCallback(None)]  # type: ignore[arg-type]
    stopped: Any = StoppedTrial()
    for callback in _create_default_callbacks(ours, air_verbosity=None):
        callback.on_trial_complete(1, [], stopped)
    assert capsys.readouterr().out == ""
