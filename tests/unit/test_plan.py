from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sweepcp.config.base_model import BaseSpec
from sweepcp.console.plan import show_plan
from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput
from sweepcp.models.loading import byte_tokenizer
from sweepcp.search import memory_plan
from sweepcp.search.plan import Plan, _token_counter, make_plan
from sweepcp.util.gpus import Gpu

GIB = 2**30


def test_numbers_of_the_e_llama_plan_by_hand():
    plan = make_plan(*load_experiment("e-llama"))
    assert plan.first.steps == 480
    assert plan.parameters == 3_212_749_824
    assert plan.trial_flops == pytest.approx(6 * 3_212_749_824 * 503_316_480)
    hours = 6 * 3_212_749_824 * 503_316_480 / 297e12 / 3600
    assert plan.trial_hours == pytest.approx((hours, 1.75 * hours))
    curve = dict(plan.lr_curve())
    assert curve[10] == pytest.approx(3e-5)  # the peak, 10 % of 3e-4
    assert curve[1] == pytest.approx(3e-6)
    assert curve[480] == pytest.approx(3e-6)
    by_name = {e.source.name: e for e in plan.epochs}
    assert by_name["web-en"].first_share == pytest.approx(0.45)  # 90 % of the general half
    assert by_name["web-de"].first_share == pytest.approx(0.02)
    assert by_name["listings-en"].first_epochs == pytest.approx(0.35 * 503_316_480 / 350e9)
    assert by_name["listings-en"].most_epochs == pytest.approx(0.7 * 503_316_480 / 350e9)
    assert by_name["web-de"].most_epochs == pytest.approx(0.5 * 0.4 * 503_316_480 / 20e9)


def test_warnings():
    sets = [
        "budget.trials=4",
        "budget.tokens=20_971_520",
        "space.lr_fraction.high=2",
        "sources.0.planned_tokens=1000",
    ]
    sets += [f"sources.{i}.planned_tokens=1000" for i in range(1, 9)]
    text = "\n".join(make_plan(*load_experiment("e-llama", sets)).warnings)
    assert "none of the 4 trials is proposed by TPE" in text
    assert "beyond the base's own max LR" in text
    assert "listings-en" in text
    assert "more than max_epochs 4" in text


def test_tokens_of_documents_count_their_marks(tmp_path: Path):
    """Two bytes each, BOS and EOS; unknown tokenizers have four bytes to a token."""
    texts = ["ab", "é"]
    pretrained = load_experiment("quickstart")[0].base
    assert _token_counter(pretrained)(texts) == 8.0
    byte_tokenizer().save_pretrained(tmp_path)
    assert _token_counter(BaseSpec(path=str(tmp_path), max_lr=1.0))(texts) == 8.0
    assert _token_counter(BaseSpec(hub="some/model", max_lr=1.0))(texts) == 1.0


@pytest.mark.parametrize("more", [0, 1])
def test_warnings_begin_where_they_say(more: int):
    """One step and one trial more, and they are gone."""
    experiment, _ = load_experiment("e-llama")
    trials = len(experiment.space.anchors) + 4 + more
    steps = 19 + more
    sets = [f"budget.trials={trials}", f"budget.tokens={steps * experiment.training.batch_tokens}"]
    text = "\n".join(make_plan(*load_experiment("e-llama", sets)).warnings)
    assert (f"none of the {trials} trials is proposed by TPE" in text) == (not more)
    assert (f"{steps} steps per trial are too few" in text) == (not more)


def test_a_plan_of_sources_on_disk_estimates_their_tokens():
    plan = make_plan(*load_experiment("quickstart"))
    assert plan.parameters == 111_040
    for count in plan.epochs:
        assert plan.token_origins[count.source.name] in ("estimated", "counted")
        assert 1e6 < count.tokens < 2e7


def planned(*changes: str, name: str = "e-llama") -> Plan:
    return make_plan(*load_experiment(name, changes))


def test_the_memory_of_an_e_llama_trial_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Llama 3.2 3B on a GPU of 80 GB, recomputed, two sequences of 8,192 tokens at a time."""
    monkeypatch.setattr(memory_plan, "visible_gpus", tuple)
    plan = planned()
    memory = plan.memory
    assert memory is not None
    assert (memory.micro_batch, memory.device.name) == (2, "a GPU of 80 GB")
    assert memory.states == 16 * 3_212_749_824
    step = memory.step
    assert step is not None
    # The most is needed at the end of the forward pass, while autocast holds all copies.
    assert step.copies == 2 * 3_212_749_824
    # The input of each layer; the last norm with its cast; cosines and sines; ids and positions.
    outside = (4 + 4 + 2) * 3072 + 4 + 2 * 4 * 128 + 16
    assert step.activations == 16_384 * (28 * 4 * 3072 + outside)
    # Logits in bf16, and a chunk and its log-softmax in fp32.
    assert step.logits == 2 * 16_384 * 128_256 + 2**28
    assert step.masks == 0
    total = 18 * 3_212_749_824 + step.activations + step.logits
    assert memory.required == round(1.05 * total) + 2**29
    assert memory.required / GIB == pytest.approx(67.4, abs=0.05)
    assert memory.device.available == 79 * GIB
    assert "a trial needs" not in "\n".join(plan.warnings)


@pytest.mark.parametrize(
    ("changes", "need", "available", "fixes"),
    [
        (
            ["training.recompute=false"],
            "98.0 GiB with 1 sequence per forward pass",
            "79.0 GiB are available (a GPU of 80 GB)",
            "training.recompute: true or a smaller proxy",
        ),
        (
            ["training.micro_batch=4"],
            "80.0 GiB with 4 sequences per forward pass",
            "79.0 GiB are available (a GPU of 80 GB)",
            "training.micro_batch: auto or a smaller proxy",
        ),
        (
            ["base.shape=null", "base.parameters=8_030_261_248"],
            "120.2 GiB for weights, gradients and optimizer alone",
            "79.0 GiB are available (a GPU of 80 GB)",
            "a smaller proxy of the same family or a larger device",
        ),
        (
            ["budget.gpus_per_trial=0.5"],
            "62.4 GiB with 1 sequence per forward pass",
            "39.5 GiB are available (0.5 of a GPU of 80 GB)",
            "a larger budget.gpus_per_trial or a smaller proxy",
        ),
    ],
)
def test_a_trial_that_does_not_fit_is_reported(
    changes: list[str], need: str, available: str, fixes: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory_plan, "visible_gpus", tuple)
    text = "\n".join(planned(*changes).warnings)
    assert f"a trial needs {need}, and {available}: use {fixes}" in text


def test_memory_is_that_of_the_gpu_that_is_visible(monkeypatch: pytest.MonkeyPatch):
    """The smallest card counts, and one without bf16 computes in fp32."""
    cards: tuple[Gpu, ...] = (Gpu("large", 80.0, (9, 0)), Gpu("small", 40.0, (8, 0)))
    monkeypatch.setattr(memory_plan, "visible_gpus", lambda: cards)
    memory = planned("budget.gpus_per_trial=0.25").memory
    assert memory is not None
    assert (memory.device.available, memory.device.name) == (10 * GIB, "0.25 of small")
    assert memory.step is not None
    assert memory.step.copies > 0
    cards = (Gpu("old", 16.0, (7, 5)),)
    memory = planned("budget.gpus_per_trial=auto").memory
    assert memory is not None
    assert (memory.device.available, memory.device.name) == (16 * GIB, "old")
    assert memory.step is not None
    assert memory.step.copies == 0
    cards = (Gpu("MIG instance", None, (9, 0)),)
    memory = planned().memory
    assert memory is not None
    assert memory.device.available == 79 * GIB
    assert memory.device.name == "a GPU of 80 GB, assumed for MIG instance"


def test_memory_without_a_gpu_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    """Eight cores run two trials of four threads at a time; the batch is 128 sequences."""
    monkeypatch.setattr(memory_plan, "visible_gpus", tuple)
    monkeypatch.setattr(memory_plan, "usable_cores", lambda: 8)
    monkeypatch.setattr(memory_plan, "usable_memory", lambda: 2**50)
    changes = ["budget.gpus_per_trial=auto", "budget.cpus_per_trial=4"]
    memory = planned(*changes).memory
    assert memory is not None
    assert memory.device.available == 2**49
    assert memory.device.name == "this machine, 2 trials at a time"
    assert memory.micro_batch == 128
    required = memory.required
    monkeypatch.setattr(memory_plan, "usable_memory", lambda: 2 * (required - 1))
    memory = planned(*changes).memory
    assert memory is not None
    assert memory.micro_batch == 64
    text = "\n".join(planned(*changes, "training.micro_batch=128").warnings)
    assert "(this machine, 2 trials at a time): use a lower budget.concurrency or" in text


def test_a_plan_shows_the_memory_of_a_trial(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_plan, "visible_gpus", tuple)
    lines = {}
    for name, changes in (("shape", []), ("parameters", ["base.shape=null", "base.parameters=5"])):
        console = Console(file=StringIO(), width=400)
        show_plan(console, planned(*changes))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        rows = [line.strip() for line in text.splitlines()]
        start = next(number for number, row in enumerate(rows) if row.startswith("memory  "))
        lines[name] = rows[start : start + 2]
    assert lines["shape"] == [
        "memory    67.4 GiB per trial, estimated; 79.0 GiB available (a GPU of 80 GB)",
        "weights, gradients and optimizer 47.9, bf16 copies 6.0, activations 5.7, logits 4.2, "
        "libraries and allocator 3.7; 2 of 128 sequences per forward pass",
    ]
    assert lines["parameters"] == [
        "memory    0.5 GiB per trial, estimated; 79.0 GiB available (a GPU of 80 GB)",
        "for weights, gradients and optimizer alone; set base.shape to estimate the rest",
    ]


def test_a_plan_of_a_tiny_model_shows_what_takes_memory(monkeypatch: pytest.MonkeyPatch):
    """None of what training itself needs is a tenth of a GiB."""
    monkeypatch.setattr(memory_plan, "visible_gpus", tuple)
    monkeypatch.setattr(memory_plan, "usable_cores", lambda: 2)
    monkeypatch.setattr(memory_plan, "usable_memory", lambda: 8 * GIB)
    console = Console(file=StringIO(), width=400)
    show_plan(console, make_plan(*load_experiment("quickstart")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "memory    0.5 GiB per trial, estimated; 4.0 GiB available (this machine, 2 trials at a "
        "time)\n            libraries and allocator 0.5; 8 of 8 sequences per forward pass\n"
    ) in text


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (["base.parameters=5"], "remove parameters"),
        (["base.hub=null", "base.revision=null", "base.path=."], "remove shape"),
    ],
)
def test_a_shape_is_stated_once(changes: list[str], rule: str):
    with pytest.raises(InvalidInput, match=rule):
        load_experiment("e-llama", changes)
