"""What trials compute on, how many have room, and what is refused before anything is started."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweepcp.cli.entry import main
from sweepcp.config import attention
from sweepcp.config.budget import Budget
from sweepcp.config.experiment import Experiment
from sweepcp.errors import InvalidInput
from sweepcp.models.base import base_dimensions
from sweepcp.models.memory import training_memory
from sweepcp.runs.run_folder import read_run
from sweepcp.search import cluster, rescore, search
from sweepcp.search.devices import (
    KEY,
    Node,
    TrialSlots,
    check_devices,
    device_of,
    local_device,
    resolve_devices,
    trial_slots,
)
from sweepcp.training import device as device_module
from sweepcp.util.gpus import Gpu
from tests.gpu_stand_in import H100 as H100_CARD
from tests.gpu_stand_in import T4 as T4_CARD
from tests.gpu_stand_in import install_nvidia_smi
from tests.make import experiment
from tests.make_run import write_run
from tests.unit.test_cli import run

H100 = Gpu("H100", 80.0, (9, 0))
T4 = Gpu("T4", 15.0, (7, 5))
UNKNOWN = Gpu("H100", None, None)


def budget(**settings: Any) -> Budget:
    return Budget(trials=4, tokens=1024, **settings)


@pytest.mark.parametrize(
    ("asked", "gpus", "share"),
    [
        ("auto", (), 0.0),
        ("auto", (H100,), 1.0),
        ("auto", (UNKNOWN,), 1.0),
        (0, (H100,), 0.0),
        (0.25, (), 0.25),
        (1, (H100,), 1.0),
    ],
)
def test_auto_is_a_whole_gpu_if_there_is_one(asked: Any, gpus: tuple[Gpu, ...], share: float):
    resolved = resolve_devices(budget(gpus_per_trial=asked), gpus)
    assert resolved == share
    assert device_of(resolved) == ("cuda" if share else "cpu")


@pytest.mark.parametrize(
    ("share", "gpus", "slots"),
    [
        (1, 1, 1),
        (1, 8, 8),
        (0.5, 1, 2),
        (0.25, 1, 4),
        (0.1, 1, 10),
        (0.07, 1, 14),
        (0.3333, 1, 3),
        (0.4, 2, 4),
        (0.6, 2, 2),
        (0.0001, 1, 64),
    ],
)
def test_slots_are_counted_in_integers_and_for_each_gpu(share: float, gpus: int, slots: int):
    nodes = [Node(64.0, (H100,) * gpus)]
    found = trial_slots(budget(gpus_per_trial=share), nodes)
    assert found == TrialSlots(share, slots, (H100,) * gpus)


def test_slots_are_counted_for_each_node():
    nodes = [Node(5.0, (H100, H100)), Node(32.0, ()), Node(1.0, (H100,)), Node(8.0, (T4,))]
    asked = {"cpus_per_trial": 2, "gpus_per_trial": 0.25}
    assert trial_slots(budget(**asked), nodes).concurrency == 2 + 0 + 0 + 4
    assert trial_slots(budget(**asked, concurrency=3), nodes).concurrency == 3
    on_cpus = trial_slots(budget(cpus_per_trial=2, gpus_per_trial=0), nodes)
    assert on_cpus == TrialSlots(0.0, 2 + 16 + 0 + 4, (H100, H100, H100, T4))
    assert trial_slots(budget(), [Node(3.0, ())]) == TrialSlots(0.0, 3)


@pytest.mark.parametrize(
    ("settings", "nodes", "key", "rule"),
    [
        ({"gpus_per_trial": 0.5}, [Node(4.0, ())], "budget.gpus_per_trial", "none is visible"),
        ({"cpus_per_trial": 5}, [Node(4.0, ()), Node(4.0, ())], "budget.cpus_per_trial", "4 CPUs"),
        (
            {"cpus_per_trial": 5, "gpus_per_trial": 1},
            [Node(16.0, ()), Node(4.0, (H100,))],
            "budget.cpus_per_trial, budget.gpus_per_trial",
            "at most 4 CPUs",
        ),
        ({}, [], "budget.cpus_per_trial", "0 CPUs"),
    ],
)
def test_a_trial_that_no_node_has_room_for_is_refused(
    settings: dict[str, Any], nodes: list[Node], key: str, rule: str
):
    with pytest.raises(InvalidInput) as refused:
        trial_slots(budget(**settings), nodes)
    assert refused.value.key == key
    assert rule in refused.value.rule


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("1.5", "0 for CPUs"),
        ("-0.1", "0 for CPUs"),
        ("true", "0 for CPUs"),
        ("'1'", "0 for CPUs"),
        ("Auto", "write auto"),
        ("null", "write auto"),
        ("[1]", "write auto"),
        ("0.33333", "write 0.3333"),
        ("0.00001", "write 0.0001"),
    ],
)
def test_a_wrong_share_names_the_key_and_the_fix(value: str, fix: str):
    with pytest.raises(InvalidInput) as refused:
        experiment(f"budget.gpus_per_trial={value}")
    assert refused.value.key == "budget.gpus_per_trial"
    assert fix in refused.value.fix


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "true", "'2'", "all", "[1]"])
def test_a_wrong_micro_batch_names_the_key_and_the_fix(value: str):
    with pytest.raises(InvalidInput) as refused:
        experiment(f"training.micro_batch={value}")
    assert refused.value.key == "training.micro_batch"
    assert refused.value.rule == "auto, or an integer of at least 1"
    assert "write auto" in refused.value.fix


def test_a_micro_batch_of_an_earlier_run_is_read():
    assert experiment("training.micro_batch=null").training.micro_batch == "auto"
    assert experiment("training.micro_batch=3").training.micro_batch == 3


@pytest.mark.parametrize(
    ("address", "options", "gpus"),
    [
        (None, {"num_gpus": 2}, (Gpu("Tesla T4", 15.0, (7, 5)),) * 2),
        # Of the GPUs of a cluster, Ray knows the number and the type.
        ("head:6379", {}, (Gpu("L4", None, None),) * 2),
    ],
)
def test_a_search_has_the_gpus_of_this_machine_or_of_the_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    options: dict[str, int],
    gpus: tuple[Gpu, ...],
):
    seen: list[dict[str, Any]] = []

    def connect(_: str | None, **options: Any) -> AbstractContextManager[None]:
        seen.append(options)
        return nullcontext()

    resources = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:L4": 1.0}
    nodes = [{"Alive": alive, "Resources": resources} for alive in (True, False)]
    install_nvidia_smi(tmp_path, monkeypatch, T4_CARD, T4_CARD)
    monkeypatch.setattr(cluster, "ray_connection", connect)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    with cluster.ray_cluster(address, budget(gpus_per_trial=0.25)) as slots:
        assert slots == TrialSlots(0.25, 8, gpus)
    assert seen == [options]


def test_workers_start_by_the_command_that_is_given(monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []

    def connect(_: str | None, **options: Any) -> AbstractContextManager[None]:
        seen.append(options)
        return nullcontext()

    monkeypatch.setenv("RAY_prestart_worker_first_driver", "1")
    monkeypatch.setattr(cluster, "ray_connection", connect)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    with cluster.ray_cluster(None, budget(), python="a command"):
        assert seen[0]["runtime_env"] == {"py_executable": "a command"}


def checked(*changes: str, gpus: tuple[Gpu, ...]) -> list[str]:
    return check_devices(experiment(*changes), gpus)


def refusal(*changes: str, gpus: tuple[Gpu, ...]) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        checked(*changes, gpus=gpus)
    return refused.value


def test_gpus_that_are_not_used_are_reported_in_one_line():
    none = "budget.gpus_per_trial=0"
    assert checked(none, gpus=()) == []
    assert checked(gpus=(H100,)) == []
    (one,) = checked(none, gpus=(H100,))
    assert one == "trials run on CPUs: budget.gpus_per_trial is 0, and 1 GPU is visible"
    (two,) = checked(none, gpus=(H100, T4))
    assert two.endswith("2 GPUs are visible")


def test_a_missing_gpu_is_reported():
    (note,) = checked("budget.gpus_per_trial=0.5", gpus=())
    assert "no GPU is visible here, and budget.gpus_per_trial is 0.5" in note


FLASH = "training.attention=flash_attention_2"


@pytest.mark.parametrize(
    ("changes", "gpus", "key", "fix"),
    [
        ([FLASH], (H100,), "training.attention", "install flash-attn"),
        ([FLASH, "budget.gpus_per_trial=1"], (), "training.attention", "install flash-attn"),
        ([FLASH], (), "training.attention", "auto"),
        ([FLASH, "budget.gpus_per_trial=0"], (H100,), "training.attention", "auto"),
        ([FLASH, "training.precision=fp32"], (H100,), "training.attention", "bf16"),
        ([FLASH], (T4,), "training.attention", "auto"),
        (["training.precision=bf16"], (H100, T4), "training.precision", "fp32 or auto"),
        # Workers of two precisions do not share a run.
        ([], (T4, UNKNOWN, H100), "training.precision", "set it to fp32, or hide"),
    ],
)
def test_what_the_devices_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: list[str], gpus: tuple[Gpu, ...], key: str, fix: str
):
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    error = refusal(*changes, gpus=gpus)
    assert error.key == key
    assert fix in error.fix


@pytest.mark.parametrize("gpus", [(), (T4,), (H100,), (UNKNOWN,)])
def test_auto_suits_every_device(gpus: tuple[Gpu, ...]):
    assert checked(gpus=gpus) == []


LARGE = "base.pretrain.config.hidden_size=1024"


def needed_gib(made: Experiment, micro_batch: int) -> float:
    dimensions = base_dimensions(made.base)
    assert dimensions is not None
    training = made.training
    memory = training_memory(
        dimensions,
        micro_batch=micro_batch,
        seq_len=training.seq_len,
        in_bf16=True,
        attention="auto",
        recompute=False,
        isolated=True,
    )
    return memory.required / 2**30


def test_a_share_that_does_not_hold_a_trial_is_refused():
    made = experiment(LARGE)
    one, eight = needed_gib(made, 1), needed_gib(made, 8)
    card = Gpu("A", 3 * one, (8, 0))
    assert checked(LARGE, "budget.gpus_per_trial=0.34", gpus=(card,)) == []
    error = refusal(LARGE, "budget.gpus_per_trial=0.33", gpus=(card, H100))
    assert error.key == "budget.gpus_per_trial"
    assert f"0.33, which is {0.99 * one:.1f} of {3 * one:.1f} GiB" == error.found
    assert f"{one:.1f} GiB with 1 sequence per" in error.rule
    assert error.fix == "set budget.gpus_per_trial to 0.5 or more"
    # A stated micro batch counts as it is, at most the batch.
    full = Gpu("A", eight, (8, 0))
    stated = (LARGE, "training.micro_batch=99")
    assert checked(*stated, gpus=(full,)) == []
    error = refusal(*stated, gpus=(Gpu("A", eight * 0.999, (8, 0)),))
    assert "with 8 sequences per" in error.rule
    assert error.fix == "set training.micro_batch to auto"


def test_a_trial_that_no_share_holds_needs_another_card():
    tiny = Gpu("A", 0.4, (8, 0))
    assert "training.recompute" in refusal(LARGE, gpus=(tiny,)).fix
    error = refusal(LARGE, "training.recompute=true", gpus=(tiny,))
    assert error.fix == "use a smaller proxy of the same family or a larger GPU"


def test_of_a_base_without_dimensions_the_weights_must_fit():
    sized = ["base.pretrain=null", "base.hub=a/b", "base.revision=main"]
    sized += ["budget.gpus_per_trial=0.5"]
    large, medium = (f"base.parameters={count}" for count in (8_030_261_248, 3_000_000_000))
    error = refusal(*sized, large, gpus=(H100,))
    assert error.rule.endswith("120.2 GiB for weights, gradients and optimizer alone")
    assert error.fix == "use a smaller proxy of the same family or a larger GPU"
    assert refusal(*sized, medium, gpus=(H100,)).fix == f"set {KEY} to 1 or more"
    assert checked(*sized, medium, gpus=(Gpu("A", 91.0, (9, 0)),)) == []
    assert checked(*sized, gpus=(H100,)) == []


def test_memory_that_is_not_known_is_not_compared():
    share = "budget.gpus_per_trial=0.0001"
    assert checked(LARGE, share, gpus=(UNKNOWN,)) == []
    assert refusal(LARGE, share, gpus=(UNKNOWN, H100)).key == "budget.gpus_per_trial"


@pytest.mark.parametrize("command", ["plan", "search"])
@pytest.mark.parametrize(
    ("card", "change", "key"),
    [
        (T4_CARD, "training.precision=bf16", "training.precision"),
        (H100_CARD, "budget.gpus_per_trial=0.0001", "budget.gpus_per_trial"),
        (H100_CARD, FLASH, "training.attention"),
    ],
)
def test_commands_end_with_status_2_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    card: str,
    change: str,
    key: str,
):
    install_nvidia_smi(tmp_path, monkeypatch, card)
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    status, message = run(monkeypatch, capsys, command, "--set", change)
    assert status == 2
    assert message.splitlines()[0] == f"Error: --set {change}: {key}"
    assert not (tmp_path / "runs").exists()


def test_a_search_without_a_gpu_that_it_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    change = "budget.gpus_per_trial=0.5"
    status, message = run(monkeypatch, capsys, "search", "--set", change)
    assert (status, message.splitlines()[0]) == (2, f"Error: --set {change}: {change[:-4]}")
    assert "--address" in message
    assert not (tmp_path / "runs").exists()


def test_a_search_reports_gpus_that_are_not_used(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        search._report_devices(experiment("budget.gpus_per_trial=0"), (H100,))
    assert [record.message for record in caplog.records] == [
        "trials run on CPUs: budget.gpus_per_trial is 0, and 1 GPU is visible"
    ]


def test_a_plan_reports_gpus_that_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    install_nvidia_smi(tmp_path, monkeypatch, H100_CARD)
    monkeypatch.setattr(sys, "argv", ["sweepcp", "plan", "--set", "budget.gpus_per_trial=0"])
    with pytest.raises(SystemExit):
        main()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("budget.gpus_per_trial is 0, and 1 GPU is visible") == 1


@pytest.mark.parametrize(("asked", "device"), [("auto", "cuda"), (0.25, "cuda"), (0, "cpu")])
def test_commands_without_trials_follow_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, device: str
):
    install_nvidia_smi(tmp_path, monkeypatch, H100_CARD)
    assert local_device(budget(gpus_per_trial=asked)) == device
    # Corpora may be checked on a machine without GPUs.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_device(budget(gpus_per_trial=asked)) == "cpu"


class Opened(Exception):
    """Raised in place of opening a device."""


@pytest.mark.parametrize(
    ("recorded", "gpus", "device"),
    [("cuda", (H100,), "cuda"), ("cpu", (H100,), "cpu"), ("cuda", (), "cpu")],
)
def test_a_model_is_scored_on_the_device_of_the_run_if_it_is_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: str,
    gpus: tuple[Gpu, ...],
    device: str,
):
    def open_device(device: str) -> None:
        raise Opened(device)

    run = read_run(write_run(tmp_path / "run", 1))
    assert run.base is not None
    base = run.base.model_copy(update={"environment": {"device": recorded}})
    monkeypatch.setattr(rescore, "stores_of_run", lambda _: {})
    monkeypatch.setattr(rescore, "experiment_scoring_spec", lambda *_, **__: None)
    monkeypatch.setattr(rescore, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(device_module, "open_device", open_device)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    with pytest.raises(Opened, match=f"^{device}$"):
        rescore._make_scorer(tmp_path, replace(run, base=base))
