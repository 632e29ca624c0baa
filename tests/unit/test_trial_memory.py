"""The micro batches of trials: from the estimate, after memory ran out, and in records."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sweepcp.config.types import Attention
from sweepcp.errors import InvalidInput, OutOfDeviceMemory
from sweepcp.models import layers
from sweepcp.models.architecture import built_dimensions
from sweepcp.models.loading import load_model
from sweepcp.models.memory import CONTEXT_BYTES, training_memory
from sweepcp.runs.run_folder import read_run
from sweepcp.runs.trial import Cost, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.scoring.scorer import Scorer
from sweepcp.search import trial_runner
from sweepcp.search.ray_driver import LedgerSearcher
from sweepcp.search.trial_memory import TrialMemory
from sweepcp.search.trial_runner import TrialRunner, environment_of
from sweepcp.search.worker import TrialWorker
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.training import engine
from sweepcp.training.batches import MicroBatch
from sweepcp.training.loop import StepMetrics
from sweepcp.training.loss import token_losses
from sweepcp.util import memory
from sweepcp.util.memory import GIB
from tests.make import recipe
from tests.unit.test_ledger import open_ledger, report, score_base, scores
from tests.unit.test_trial_runner import spec  # noqa: F401  # a fixture

TRIED = recipe(seq_len=16, batch_tokens=128, tokens=3 * 128, lr_fraction=0.3, seed=5)
"""Steps of 8 sequences."""


@pytest.fixture(scope="module")
def auto(spec: WorkerSpec) -> WorkerSpec:  # noqa: F811
    return replace(spec, micro_batch="auto")


@pytest.fixture
def runner(auto: WorkerSpec) -> TrialRunner:
    return TrialRunner(auto)


class Rows:
    """Stands in for a GPU whose memory holds the activations of so many sequences."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, limit: int) -> None:
        self.limit = limit
        self.tried: list[int] = []
        monkeypatch.setattr(engine, "token_losses", self)

    def __call__(self, model: Any, micro_batch: MicroBatch) -> torch.Tensor:
        rows = len(micro_batch.input_ids)
        self.tried.append(rows)
        if rows > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 GiB.")
        return token_losses(model, micro_batch)


def end(events: Iterator[StepMetrics | TrialOutcome]) -> tuple[list[StepMetrics], TrialOutcome]:
    *metrics, outcome = events
    assert isinstance(outcome, TrialOutcome)
    return metrics, outcome  # type: ignore[return-value]


def cost(outcome: TrialOutcome) -> Cost:
    assert outcome.cost is not None
    return outcome.cost


def test_a_trial_that_runs_out_of_memory_is_halved_and_equals_the_whole_batch(
    auto: WorkerSpec, runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    whole_metrics, whole = end(runner.run(TRIED))
    assert (cost(whole).first_micro_batch, cost(whole).micro_batch) == (8, 8)
    assert cost(whole).halved_to is None
    gpu = Rows(monkeypatch, limit=3)
    metrics, halved = end(runner.run(TRIED))
    assert gpu.tried == [8, 4, *([2] * 12)]
    assert halved.status == "done"
    assert (cost(halved).first_micro_batch, cost(halved).micro_batch) == (8, 2)
    assert cost(halved).halved_to == 2
    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in whole_metrics], rel=1e-5)
    for ours, theirs in zip(halved.items, whole.items, strict=True):
        assert ours.amount == pytest.approx(theirs.amount, rel=1e-4)
    # The same worker remembers, another one is told, and what is told is an upper bound.
    for worker, told in ((runner, None), (runner, 6), (TrialRunner(auto), 2), (runner, 1)):
        gpu.tried.clear()
        _, outcome = end(worker.run(TRIED, micro_batch=told))
        expected = told if told in (1, 2) else 2
        assert set(gpu.tried) == {expected}
        assert (cost(outcome).first_micro_batch, cost(outcome).halved_to) == (expected, None)
    # A trial with fewer sequences per step is not larger for it.
    small = recipe(seq_len=16, batch_tokens=16, tokens=32)
    assert cost(end(runner.run(small))[1]).micro_batch == 1


def test_a_trial_that_diverges_after_halving_leaves_the_size_to_the_next(
    runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    gpu = Rows(monkeypatch, limit=4)
    diverging = TRIED.model_copy(update={"lr_fraction": 1e30})
    assert end(runner.run(diverging))[1].status == "diverged"
    gpu.tried.clear()
    end(runner.run(TRIED))
    assert set(gpu.tried) == {4}


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to a stand-in for the GPU of 24 GiB that `torch.cuda` knows."""
    calls: list[str] = []

    def count(name: str, answer: Any = None) -> None:
        def call(*_: object) -> Any:
            calls.append(name)
            return answer

        monkeypatch.setattr(torch.cuda, name, call)

    count("max_memory_allocated", 3 * GIB)
    count("reset_peak_memory_stats")
    count("empty_cache")
    count("get_device_name", "a card")
    return calls


@pytest.fixture
def on_gpu(runner: TrialRunner, gpu_memory: list[str]) -> TrialRunner:
    runner.device = torch.device("cuda")
    runner.spec = replace(runner.spec, device="cuda", gpu_share=0.5)
    runner.memory = replace(runner.memory, available=12 * GIB)
    return runner


def test_memory_is_measured_in_training_and_compared_with_the_estimate(
    on_gpu: TrialRunner, gpu_memory: list[str], monkeypatch: pytest.MonkeyPatch
):
    score = on_gpu.scorer.score

    def record_scoring() -> list[ItemScores]:
        gpu_memory.append("score")
        return score()

    monkeypatch.setattr(on_gpu.scorer, "score", record_scoring)
    used = cost(end(on_gpu.run(TRIED))[1])
    assert gpu_memory == [
        "reset_peak_memory_stats", "max_memory_allocated", "empty_cache", "score",
        "get_device_name",
    ]  # fmt: skip
    dimensions = built_dimensions(on_gpu.model)
    how: dict[str, Any] = {"in_bf16": False, "attention": "sdpa", "recompute": False}
    estimate = training_memory(dimensions, micro_batch=8, seq_len=16, isolated=True, **how)
    assert used.attention == "sdpa"
    assert used.memory_gib == 3
    assert used.estimated_memory_gib == estimate.total / GIB
    assert used.memory_ratio == 3 * GIB / estimate.total


def test_on_a_cpu_nothing_is_measured(runner: TrialRunner):
    used = cost(end(runner.run(TRIED))[1])
    assert used.memory_gib is None
    assert used.memory_ratio is None
    assert used.estimated_memory_gib


@pytest.mark.parametrize(
    ("changes", "limit", "micro_batch", "fixes"),
    [
        (
            {},
            0,
            1,
            "use a smaller proxy, or set training.recompute to true, or raise "
            "budget.gpus_per_trial",
        ),
        ({"gpu_share": 1.0, "recompute": True}, 0, 1, "use a smaller proxy"),
        ({"micro_batch": 5}, 3, 5, "set training.micro_batch to auto or to a smaller number"),
    ],
)
def test_a_trial_that_does_not_fit_fails_with_what_helps(
    on_gpu: TrialRunner,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    limit: int,
    micro_batch: int,
    fixes: str,
):
    gpu = Rows(monkeypatch, limit=limit)
    on_gpu.spec = replace(on_gpu.spec, **changes)
    estimate = on_gpu.memory.estimate_gib(TRIED, micro_batch=micro_batch)
    with pytest.raises(OutOfDeviceMemory) as caught:
        list(on_gpu.run(TRIED))
    assert gpu.tried == ([8, 4, 2, 1] if micro_batch == 1 else [5])
    assert str(caught.value) == (
        f"GPU memory ran out at micro batch {micro_batch}: 12 GiB are available to a trial, "
        f"3 GiB were allocated when more was asked for, {estimate:.3g} GiB were estimated; "
        f"fix: {fixes}"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_memory_that_runs_out_in_the_optimizer_is_no_matter_of_the_micro_batch(
    on_gpu: TrialRunner, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfDeviceMemory, match="ran out in the optimizer's step at micro batch 8"):
        list(on_gpu.run(TRIED))


def test_another_error_of_a_trial_is_raised_as_it_is(
    on_gpu: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    def step(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(on_gpu.run(TRIED))


def test_what_a_trial_may_use_is_its_share_of_the_gpu_or_of_the_machine(
    auto: WorkerSpec, monkeypatch: pytest.MonkeyPatch
):
    def available(device: str, concurrent: int, **changes: Any) -> float:
        made = replace(auto, **changes)
        return trial_runner._available_memory(made, torch.device(device), concurrent)

    class Card:
        total_memory = 80 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    assert available("cuda", 8, gpu_share=0.25) == 20 * GIB
    monkeypatch.setattr(trial_runner, "usable_memory", lambda: 48 * GIB)
    monkeypatch.setattr(trial_runner, "usable_cores", lambda: 8)
    # At most as many trials as the cores of this machine have room for, and those that run at all.
    assert available("cpu", 100) == 6 * GIB + CONTEXT_BYTES
    assert available("cpu", 100, threads=3) == 24 * GIB + CONTEXT_BYTES
    assert available("cpu", 3) == 16 * GIB + CONTEXT_BYTES
    assert available("cpu", 3, threads=16) == 48 * GIB + CONTEXT_BYTES


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, 10**15), ({"memory.max": "max\n"}, 10**15), ({"memory.max": "4096\n"}, 4096),
     ({"memory.limit_in_bytes": "8192\n"}, 8192),
     ({"memory.limit_in_bytes": "9223372036854771712\n"}, 10**15)],
)  # fmt: skip
def test_memory_is_that_of_the_machine_within_the_limit_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    limits = tuple(tmp_path / limit.name for limit in memory.MEMORY_LIMITS)
    monkeypatch.setattr(memory, "MEMORY_LIMITS", limits)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 10**12}.get)
    assert memory.usable_memory() == expected


def test_a_trial_starts_with_what_fits_by_estimate(
    auto: WorkerSpec, runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    dimensions = built_dimensions(runner.model)
    assert runner.memory.largest_micro_batch(TRIED) == 8
    assert runner.memory.isolated
    assert (runner.memory.attention, runner.memory.in_bf16) == ("sdpa", False)
    how: dict[str, Any] = {"in_bf16": False, "attention": "sdpa", "recompute": False}
    three = training_memory(dimensions, micro_batch=3, seq_len=16, isolated=True, **how).required
    monkeypatch.setattr(trial_runner, "usable_memory", lambda: 4 * (three - CONTEXT_BYTES))
    monkeypatch.setattr(trial_runner, "usable_cores", lambda: 4)
    small = TrialRunner(auto, concurrent_trials=9)
    assert cost(end(small.run(TRIED))[1]).micro_batch == 2


def test_a_base_whose_dimensions_are_not_known_is_not_estimated():
    unknown = TrialMemory(
        dimensions=None,
        available=0,
        in_bf16=False,
        attention="sdpa",
        recompute=False,
        isolated=True,
    )
    assert unknown.largest_micro_batch(TRIED) == 8
    assert unknown.estimate_gib(TRIED, micro_batch=8) is None


def halved_cost(first: int, last: int) -> Cost:
    return Cost(
        train_seconds=1,
        score_seconds=1,
        tokens=8,
        tokens_per_second=8,
        worker="here",
        first_micro_batch=first,
        micro_batch=last,
    )


def test_the_smallest_halved_micro_batch_is_handed_to_later_trials_and_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    ledger = open_ledger(tmp_path, 9)
    score_base(ledger)

    def finish(key: str, first: int, last: int) -> None:
        outcome = TrialOutcome(status="done", items=scores(1, 1), cost=halved_cost(first, last))
        ledger.record_report(key, report(outcome))

    searcher = LedgerSearcher(ledger)
    told = [searcher.suggest(key)["micro_batch"] for key in "abc"]
    finish("a", 4, 4)  # a smaller batch, which was not halved
    told.append(searcher.suggest("d")["micro_batch"])
    finish("b", 16, 8)
    told.append(searcher.suggest("e")["micro_batch"])
    finish("c", 16, 8)
    finish("d", 32, 16)
    assert told == [None, None, None, None, 8]
    (line,) = (r.getMessage() for r in caplog.records if "memory" in r.getMessage())
    assert line == (
        "GPU memory ran out in trial 0001: it finished with 8 sequences per forward pass, and "
        "trials that start later have no more"
    )
    finish("e", 8, 2)
    assert searcher.suggest("f")["micro_batch"] == 2
    assert read_run(tmp_path).by_id["0004"].cost == halved_cost(8, 2)
    ledger = open_ledger(tmp_path, 9)
    assert LedgerSearcher(ledger).suggest("g")["micro_batch"] == 2


def test_a_worker_hands_the_micro_batch_to_its_runner():
    told: list[int | None] = []

    class Runner:
        environment = None

        def run(self, *_: object, micro_batch: int | None) -> Iterator[TrialOutcome]:
            told.append(micro_batch)
            yield TrialOutcome(status="failed", reason="no reason")

    worker = object.__new__(TrialWorker)
    worker.setup({"recipe": TRIED.model_dump_json(), "micro_batch": 4}, Runner)  # type: ignore[arg-type]
    for config in ({"micro_batch": None}, {"micro_batch": 2}):
        while not worker.step()["done"]:
            pass
        worker.reset_config({"recipe": TRIED.model_dump_json(), **config})
    assert told == [4, None]


@pytest.mark.parametrize("attention", ["eager", "varlen"])
def test_attention_is_that_of_the_experiment_and_recorded(
    auto: WorkerSpec, runner: TrialRunner, attention: Attention
):
    assert runner.environment["attention"] == "sdpa"
    other = TrialRunner(replace(auto, attention=attention))
    assert other.environment == runner.environment | {"attention": attention}
    assert other.memory.attention == attention
    metrics, outcome = end(other.run(TRIED))
    assert cost(outcome).attention == attention
    expected = end(runner.run(TRIED))[0]
    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in expected], rel=1e-5)


def test_a_new_worker_starts_at_the_size_to_which_another_one_was_halved(
    auto: WorkerSpec, runner: TrialRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Steps have two sequences, of which one fits."""
    gpu = Rows(monkeypatch, limit=1)
    ledger = open_ledger(tmp_path, 2)
    searcher = LedgerSearcher(ledger)
    for key, trials in (("base", runner), ("first", runner), ("second", TrialRunner(auto))):
        worker = object.__new__(TrialWorker)
        worker.setup(searcher.suggest(key), partial(lambda trials: trials, trials))
        done = False
        while not done:
            step = worker.step()
            ledger.record_report(key, step["report"])
            done = step["done"]
    assert gpu.tried == [2] + [1] * 40
    first, second = read_run(tmp_path).trials
    assert (first.status, second.status) == ("done", "done")
    assert first.cost is not None
    assert second.cost is not None
    assert (first.cost.first_micro_batch, first.cost.micro_batch) == (2, 1)
    assert (second.cost.first_micro_batch, second.cost.micro_batch) == (1, 1)


def test_recomputed_activations_change_no_loss(auto: WorkerSpec, runner: TrialRunner):
    expected, outcome = end(runner.run(TRIED))
    saved = TrialRunner(replace(auto, recompute=True))
    assert saved.memory.recompute
    assert all(m.gradient_checkpointing for m in saved.model.modules() if hasattr(m, "mlp"))
    metrics, recomputed = end(saved.run(TRIED))
    assert [m.loss for m in metrics] == [m.loss for m in expected]
    assert recomputed.items == outcome.items


def test_layers_are_compiled_for_training_only(
    auto: WorkerSpec, runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    """A backend that runs what was traced stands in for the compiler."""
    traced: list[bool] = []

    def compiled(graph: torch.fx.GraphModule, _: object) -> Any:
        traced.append(torch.is_grad_enabled())
        return graph.forward

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: plain(layer, backend=compiled))
    expected, outcome = end(runner.run(TRIED))

    def environment(scorer: Scorer, device: torch.device) -> dict[str, str]:
        with torch.no_grad():  # as tasks do that check how their answers may be computed
            scorer.model(torch.ones(1, 5, dtype=torch.long))
        return environment_of(scorer, device)

    monkeypatch.setattr(trial_runner, "environment_of", environment)
    fast = TrialRunner(replace(auto, compile=True))
    assert set(fast.base_weights) == set(runner.base_weights)
    metrics, scored = end(fast.run(TRIED))
    assert traced
    assert all(traced)
    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in expected], rel=1e-5)
    for ours, theirs in zip(scored.items, outcome.items, strict=True):
        assert ours.amount == pytest.approx(theirs.amount, rel=1e-4)


@pytest.mark.parametrize("name", ["recompute_activations", "compile_layers"])
def test_architectures_without_marked_layers_are_refused(
    auto: WorkerSpec, monkeypatch: pytest.MonkeyPatch, name: str
):
    model = load_model(auto.model, revision=None, device=torch.device("cpu"))
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    monkeypatch.setattr(layers, "GradientCheckpointingLayer", torch.nn.Conv1d)
    key = {"recompute_activations": "recompute", "compile_layers": "compile"}[name]
    with pytest.raises(InvalidInput) as caught:
        getattr(layers, name)(model)
    assert caught.value.key == f"training.{key}"
    assert caught.value.fix == f"set training.{key} to false"
