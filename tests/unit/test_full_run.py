"""How a full run ends, restarts and watches itself: an engine and a scorer that compute nothing."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from sweepcp.cli import main
from sweepcp.data.stream import Batch, MixtureStream
from sweepcp.errors import Alarmed, Diverged, InvalidInput, Stopped
from sweepcp.full_run import ending, run
from sweepcp.full_run.preflight import fetch_model_files, stores_of_bundle
from sweepcp.full_run.ray_launcher import ending_error
from sweepcp.promote.bundle import LoadedBundle, load_bundle
from sweepcp.training.process_group import FILES_TIMEOUT, STEPS_TIMEOUT, ProcessGroup
from tests.fake_full_run import FakeEngine, FakeScorer, FakeSpec, Script
from tests.integration.conftest import metrics
from tests.make import write_bundle

ALARMING = {"every": 3, "max_regression": 1.0, "stop": True}
SPIKES = {"factor": 2.0, "window": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model and the corpora of all bundles."""
    path = tmp_path_factory.mktemp("bundles")
    write_bundle(path)
    return path


@pytest.fixture
def make_bundle(folder: Path) -> Callable[..., LoadedBundle]:
    def make(**changes: object) -> LoadedBundle:
        shutil.rmtree(folder / "bundle")
        return load_bundle(write_bundle(folder, **changes))

    return make


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Script]:
    """Replace everything that computes; returns what happens in its place."""
    script = Script()
    engines: list[FakeEngine] = []

    def make_engine(*arguments: Any, **_: Any) -> FakeEngine:
        group = next(value for value in arguments if isinstance(value, ProcessGroup))
        engines.append(FakeEngine(script, group))
        return engines[-1]

    shards = fetch_model_files(load_bundle(folder / "bundle"), ProcessGroup())
    monkeypatch.setattr(run, "ZeroEngine", make_engine)
    monkeypatch.setattr(run, "Scorer", lambda *_, **__: FakeScorer(script, engines))
    monkeypatch.setattr(run, "join_process_group", lambda _: ProcessGroup())
    monkeypatch.setattr(run, "fetch_model_files", lambda *_: shards)
    monkeypatch.setattr(run, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(run, "make_scoring_spec", lambda suites, *_, **__: FakeSpec(suites))
    handlers = {number: signal.getsignal(number) for number in ending.SIGNALS}
    yield script
    for number, handler in handlers.items():
        signal.signal(number, handler)


def read_ending(out: Path) -> tuple[int, int | None]:
    """Exit status and step of `ended.json`."""
    content = json.loads((out / "ended.json").read_text())
    assert content["reason"]
    return content["status"], content["step"]


def steps_of(out: Path) -> list[int]:
    return [row["step"] for row in metrics(out)]


def train(
    monkeypatch: pytest.MonkeyPatch, bundle: LoadedBundle, out: Path, *options: object
) -> int:
    """The exit status of `sweepcp train`."""
    arguments = ["sweepcp", "train", bundle.path, "--out", out, *options]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


# How a run ends, and what the next start does.


def test_a_finished_run_is_reported_again_and_not_repeated(
    make_bundle, script, tmp_path, monkeypatch, capsys
):
    bundle, out = make_bundle(), tmp_path / "run"
    assert train(monkeypatch, bundle, out) == 0
    assert read_ending(out) == (0, 20)
    assert steps_of(out) == list(range(1, 21))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    for _ in range(2):
        assert train(monkeypatch, bundle, out) == 0
        assert "finished: " in capsys.readouterr().out
    assert script.steps == 20
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def test_an_alarm_is_final_for_every_restart_until_it_is_continued(
    make_bundle, script, tmp_path, monkeypatch, capsys
):
    """A launcher that restarts whatever failed does not undo `watch.stop`."""
    bundle, out = make_bundle(watch=ALARMING, checkpoints={"every": 50}), tmp_path / "run"
    script.general = -2.0
    messages = set()
    for _ in range(4):
        assert train(monkeypatch, bundle, out) == 3
        messages.add(capsys.readouterr().err)
    (message,) = messages
    assert "step 3: held-out general -2.00 %, the bound is -1 %" in message
    assert "--continue-after 3" in message
    assert (script.steps, read_ending(out), steps_of(out)) == (3, (3, 3), [1, 2, 3])
    # The option names one alarm: a launcher that repeats the command does not pass the next.
    for _ in range(3):
        assert train(monkeypatch, bundle, out, "--continue-after", 3) == 3
    assert (script.steps, read_ending(out)) == (6, (3, 6))
    # Nor does it pass the same one twice, if the run gets to it again.
    ended = json.loads((out / "ended.json").read_text())
    (out / "ended.json").write_text(json.dumps(ended | {"step": 3}))
    assert train(monkeypatch, bundle, out, "--continue-after", 3) == 3
    assert script.steps == 6
    (out / "ended.json").write_text(json.dumps(ended))
    script.general = 0.0
    assert train(monkeypatch, bundle, out, "--continue-after", 6) == 0
    assert (script.steps, read_ending(out)) == (20, (0, 20))
    assert steps_of(out) == list(range(1, 21))


def test_a_finished_run_is_not_continued(make_bundle, script, tmp_path, monkeypatch):
    bundle, out = make_bundle(), tmp_path / "run"
    assert train(monkeypatch, bundle, out) == 0
    assert train(monkeypatch, bundle, out, "--continue-after", 20) == 0
    assert script.steps == 20


def test_a_divergence_is_final(make_bundle, script, tmp_path, monkeypatch, capsys):
    def spoil(step: int) -> None:
        script.loss = lambda _: float("nan") if step == 7 else 1.0

    script.before_step = spoil
    bundle, out = make_bundle(), tmp_path / "run"
    for _ in range(3):
        assert train(monkeypatch, bundle, out) == 3
        assert "step 7 of 20: loss nan" in capsys.readouterr().err
    assert (script.steps, read_ending(out), steps_of(out)) == (7, (3, 7), [1, 2, 3, 4, 5, 6])
    # Resumes from the checkpoint at step 5.
    assert train(monkeypatch, bundle, out, "--continue-after", 7) == 0
    assert script.steps == 7 + 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_and_the_next_start_resumes(
    make_bundle, script, tmp_path, monkeypatch, number
):
    script.before_step = lambda step: os.kill(os.getpid(), number) if step == 7 else None
    bundle, out = make_bundle(), tmp_path / "run"
    assert train(monkeypatch, bundle, out) == 128 + number
    assert read_ending(out) == (128 + number, 7)
    assert train(monkeypatch, bundle, out) == 0
    assert (script.steps, read_ending(out)) == (20, (0, 20))


def test_a_stop_file_takes_the_place_of_a_signal(make_bundle, script, tmp_path):
    """The processes of Ray Train train in a thread, which no signal reaches."""
    stop_file = tmp_path / "stop"
    script.before_step = lambda step: stop_file.write_text("12") if step == 7 else None
    with pytest.raises(Stopped) as stop:
        run.full_run(make_bundle(), tmp_path / "run", stop_file=stop_file)
    assert stop.value.signal == signal.SIGUSR2
    assert read_ending(tmp_path / "run") == (140, 7)


def test_a_signal_before_the_first_step_stops_the_run_before_it(
    make_bundle, script, tmp_path, monkeypatch
):
    """Also one that comes while the process still waits for the others."""

    def join(_device: str) -> ProcessGroup:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        return ProcessGroup()

    bundle, out = make_bundle(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run, "join_process_group", join)
        assert train(monkeypatch, bundle, out) == 143
    assert script.steps == 0
    assert train(monkeypatch, bundle, out) == 0


def test_a_failure_is_recorded_and_the_next_start_resumes(
    make_bundle, script, tmp_path, monkeypatch
):
    def fail(step: int) -> None:
        if step == 7:
            raise RuntimeError("out of memory")
        if step == 8:
            assert not (out / "ended.json").exists()

    script.before_step = fail
    bundle, out = make_bundle(), tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of memory"):
        run.full_run(bundle, out)
    assert read_ending(out) == (1, 6)
    assert "RuntimeError: out of memory" in (out / "ended.json").read_text()
    assert train(monkeypatch, bundle, out) == 0
    assert script.steps == 7 + 15


def test_invalid_input_is_recorded_and_checked_again(make_bundle, script, tmp_path, monkeypatch):
    script.before_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    bundle, out = make_bundle(), tmp_path / "run"
    assert train(monkeypatch, bundle, out) == 143
    pointer = out / "checkpoints" / "latest"
    content = pointer.read_text()
    pointer.unlink()
    for _ in range(2):
        assert train(monkeypatch, bundle, out) == 2
        assert read_ending(out) == (2, 0)
    pointer.write_text(content)
    assert train(monkeypatch, bundle, out) == 0
    assert script.steps == 20


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Stopped(signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
        (Diverged("", 1), 3),
        (Alarmed(""), 3),
        (InvalidInput(found=1, rule="", fix=""), 2),
        (MemoryError(), 1),
    ],
)
def test_exit_status_of_every_error(error, status):
    assert ending.exit_status(error) == status


def test_the_ending_of_a_run_under_ray_is_that_of_the_process_that_knows_it():
    alarm = Alarmed("step 3")
    assert ending_error([RuntimeError("connection closed"), alarm]) is alarm
    first = RuntimeError("first")
    assert ending_error([first, RuntimeError("second")]) is first


class SecondRank(ProcessGroup):
    """A rank that hears from the first one that it ends with 2."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        assert not array.any()
        return array + 2


def test_all_ranks_end_with_2_when_the_first_one_refuses():
    """A rank that waits is killed, and srun reports the status of the kill."""

    def refuse() -> None:
        raise InvalidInput(found=1, rule="a rule", fix="")

    with pytest.raises(InvalidInput, match="a rule"):
        ending.check_on_first_rank(ProcessGroup(), refuse)
    with pytest.raises(SystemExit) as stop:
        ending.check_on_first_rank(SecondRank(rank=1, world_size=2), refuse)
    assert stop.value.code == 2
    called: list[int] = []
    ending.check_on_first_rank(ProcessGroup(), lambda: called.append(1))
    assert called == [1]


def test_changed_content_ends_all_ranks(make_bundle, script, tmp_path, monkeypatch):
    """One rank reads it. The others end with it; those that waited would be killed."""
    bundle = make_bundle()
    file = stores_of_bundle(bundle.bundle)[0].path / "held_out.jsonl"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    assert train(monkeypatch, bundle, tmp_path / "run") == 2
    file.write_bytes(content)
    monkeypatch.setattr(run, "join_process_group", lambda _: SecondRank(rank=1, world_size=2))
    # Nothing comes after the check.
    monkeypatch.delattr(run, "fetch_model_files")
    assert train(monkeypatch, bundle, tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()


# Whose run a folder holds.


def test_a_folder_belongs_to_one_bundle_whatever_its_run_came_to(make_bundle, script, tmp_path):
    """Also before the first checkpoint, and after the end."""

    def refuse(other: LoadedBundle) -> None:
        with pytest.raises(InvalidInput, match="name another --out"):
            run.full_run(other, out)
        with pytest.raises(InvalidInput, match="name another --out"):
            ending.read_final_ending(out, other.id)

    out = tmp_path / "run"
    script.before_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    bundle, other = make_bundle(name="one"), make_bundle(name="two")
    script.documents = 1
    with pytest.raises(InvalidInput):
        run.full_run(bundle, out)
    refuse(other)
    script.documents = 4
    with pytest.raises(Stopped):
        run.full_run(bundle, out)
    refuse(other)
    shutil.rmtree(out / "checkpoints")
    refuse(other)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "latest").write_text("step-0\n")
    run.full_run(bundle, out)
    refuse(other)
    assert ending.read_final_ending(out, bundle.id)


@pytest.mark.parametrize("name", ending.RUN_FILES)
def test_files_of_an_unknown_bundle_are_refused(make_bundle, script, tmp_path, name):
    (tmp_path / name).write_text("{}")
    bundle = make_bundle()
    with pytest.raises(InvalidInput, match=r"without run\.json"):
        ending.read_final_ending(tmp_path, bundle.id)
    with pytest.raises(InvalidInput, match=r"without run\.json"):
        run.full_run(bundle, tmp_path)


@pytest.mark.parametrize("name", ["base.json", "ended.json", "run.json"])
def test_a_file_of_another_bundle_or_a_damaged_one_is_refused(
    make_bundle, script, tmp_path, monkeypatch, capsys, name
):
    script.before_step = lambda step: (
        os.kill(os.getpid(), signal.SIGTERM) if step % 7 == 0 else None
    )
    bundle, out = make_bundle(), tmp_path / "run"
    assert train(monkeypatch, bundle, out) == 143
    content = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps(content | {"bundle": "a" * 64}))
    assert train(monkeypatch, bundle, out) == 2
    assert "a run of this bundle" in capsys.readouterr().err
    (out / name).write_text(json.dumps(content)[:-9])
    assert train(monkeypatch, bundle, out) == 2
    assert "a complete record" in capsys.readouterr().err
    assert script.steps == 7


def test_other_versions_on_resume_are_reported_and_recorded(
    make_bundle, script, tmp_path, monkeypatch, caplog
):
    script.before_step = lambda step: (
        os.kill(os.getpid(), signal.SIGTERM) if step % 5 == 0 else None
    )
    bundle, out = make_bundle(), tmp_path / "run"
    versions = dict(ending.package_versions())
    monkeypatch.setattr(ending, "package_versions", lambda: versions)

    def start() -> list[dict[str, str]]:
        caplog.clear()
        with pytest.raises(Stopped):
            run.full_run(bundle, out)
        recorded: list[dict[str, str]] = json.loads((out / "run.json").read_text())["versions"]
        return recorded

    first = dict(versions)
    assert start() == [first]
    assert start() == [first]
    assert "versions" not in caplog.text
    versions["torch"] = "0"
    assert start() == [first, versions]
    assert f"resuming with other versions: torch {first['torch']} → 0" in caplog.text


# Before training begins.


def test_halves_with_too_few_documents_are_refused_at_step_0(
    make_bundle, script, tmp_path, monkeypatch, capsys
):
    """They made the first look at the held-out text fail, and every restart after it."""
    script.documents = 3
    bundle, out = make_bundle(), tmp_path / "run"
    for _ in range(2):
        assert train(monkeypatch, bundle, out) == 2
        assert "bundle.json: suites" in capsys.readouterr().err
    assert script.steps == 0
    assert not (out / "base.json").exists()


# Alarms and rollbacks.


def test_an_improvement_does_not_stop_a_run(make_bundle, script, tmp_path):
    script.general = 2.0
    card = run.full_run(make_bundle(watch=ALARMING), tmp_path)
    assert card.report.general == pytest.approx(2.0)


def stream_steps(bundle: LoadedBundle, count: int) -> list[tuple[int, ...]]:
    """The first tokens of every sequence of the first steps of the stream."""
    stream = MixtureStream(bundle.bundle.recipe, stores_of_bundle(bundle.bundle))
    return [tuple(stream.batch(step).input_ids.ravel()) for step in range(1, count + 1)]


def test_after_a_rollback_the_steps_that_led_to_the_spike_are_not_read_again(
    make_bundle, script, tmp_path
):
    """Step 11 spikes; the checkpoint before it is that of step 8, so 9, 10 and 11 are skipped."""
    bundle = make_bundle(spikes=SPIKES, checkpoints={"every": 4})
    expected = stream_steps(bundle, 23)
    read: list[int] = []

    def loss(batch: Batch) -> float:
        read.append(expected.index(tuple(batch.input_ids.ravel())) + 1)
        return 5.0 if read[-1] == 11 else 1.0

    script.loss = loss
    run.full_run(bundle, tmp_path)
    assert read == [*range(1, 12), *range(12, 24)]
    assert steps_of(tmp_path) == list(range(1, 21))
    manifest = json.loads((tmp_path / "checkpoints/step-00000020/manifest.json").read_text())
    assert (manifest["skipped"], manifest["rollbacks"]) == ([9, 10, 11], 1)


def test_a_run_that_spikes_too_often_diverges(make_bundle, script, tmp_path):
    """At most two rollbacks from step 8; the third spike ends the run."""
    bundle = make_bundle(spikes=SPIKES | {"at_most": 2}, checkpoints={"every": 4})
    script.before_step = lambda step: setattr(script, "loss", lambda _: 5.0 if step > 8 else 1.0)
    with pytest.raises(Diverged, match=r"step 9: loss 5\.0000"):
        run.full_run(bundle, tmp_path)
    assert (script.steps, read_ending(tmp_path)) == (11, (3, 9))


# How long processes wait for each other.


def test_steps_have_a_shorter_timeout_than_files(make_bundle, script, tmp_path, monkeypatch):
    """A process that hangs in a step costs the others less time than reading files may take."""
    limits: dict[str, set[timedelta]] = {}
    limit = [FILES_TIMEOUT]

    class Timed(ProcessGroup):
        def set_timeout(self, timeout: timedelta) -> None:
            limit[0] = timeout

    def note_limit(place: Any, name: str) -> None:
        function = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            limits.setdefault(name, set()).add(limit[0])
            return function(*arguments, **options)

        monkeypatch.setattr(place, name, call)

    monkeypatch.setattr(run, "join_process_group", lambda _: Timed())
    for name in ("save_checkpoint", "find_checkpoint", "read_checkpoint"):
        note_limit(run, name)
    for name in ("step", "save_weights"):
        note_limit(FakeEngine, name)
    bundle = make_bundle(spikes=SPIKES, checkpoints={"every": 4})
    script.loss = lambda _: 5.0 if script.steps == 11 else 1.0
    assert train(monkeypatch, bundle, tmp_path / "run") == 0
    assert limits.pop("step") == {STEPS_TIMEOUT}
    files = ("save_checkpoint", "find_checkpoint", "read_checkpoint", "save_weights")
    assert limits == {name: {FILES_TIMEOUT} for name in files}
    assert STEPS_TIMEOUT < FILES_TIMEOUT


def test_a_timeout_holds_for_every_group_of_processes(tmp_path: Path):
    """DeepSpeed reduces gradients in a group of its own. A rank that is behind is waited for."""
    before: list[timedelta] = []

    class Waiting(ProcessGroup):
        def barrier(self) -> None:
            world = dist.group.WORLD
            assert world is not None
            backend = world._get_backend(torch.device("cpu"))
            before.append(backend.options._timeout)
            super().barrier()

    dist.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store", timeout=FILES_TIMEOUT
    )
    try:
        groups = [dist.group.WORLD, dist.new_group([0])]
        Waiting(world_size=2).set_timeout(timedelta(minutes=7))
        assert before == [FILES_TIMEOUT]
        for group in groups:
            backend = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout == timedelta(minutes=7)
    finally:
        dist.destroy_process_group()
    ProcessGroup().set_timeout(timedelta(minutes=7))  # a single process needs no group
