"""How a command ends: exit statuses and messages of errors, streams and signals."""

import ctypes
import errno
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RaySystemError
from safetensors import SafetensorError

from sweepcp.cli import commands, main
from sweepcp.cli.entry import STOPPED
from sweepcp.errors import BaseNotScored, WorkLost
from sweepcp.search import search
from sweepcp.util.signals import kept_signal_handlers

RESUME = "Finished work is kept. Run the same command to resume."


def ending(
    command: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[object, str]:
    """Exit status and standard error of a command that does what `command` does."""
    monkeypatch.setattr(commands, "app", command)
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def system_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (system_error(errno.ENOSPC, "runs/base.json"), "runs/base.json: No space left on device"),
        (system_error(errno.EDQUOT), "Disk quota exceeded"),
        (system_error(errno.EROFS, "runs"), "runs: Read-only file system"),
        (system_error(errno.EIO, "train.bin"), "train.bin: Input/output error"),
        (system_error(errno.ENOENT, "runs/a"), "runs/a: No such file or directory"),
        (
            SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
            "No space left on device",
        ),
        (OSError("5 requested and 0 written\nmore"), "5 requested and 0 written"),
        (MemoryError(), "out of memory"),
        (RaySystemError("the connection was lost"), "Ray: System error: the connection was lost"),
        (WorkLost("Ray ended the search: lost"), "Ray ended the search: lost"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_status_1(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    status, text = ending(raising(error), monkeypatch, capsys)
    assert (status, text) == (1, f"Error: {message}. {RESUME}\n")


def test_a_broken_pipe_is_reported_unless_it_is_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def command() -> None:
        try:
            raise system_error(errno.EPIPE, *names)
        except OSError:
            sys.exit(1)  # as typer does

    names: tuple[str, ...] = ("standard output",)
    assert ending(command, monkeypatch, capsys) == (1, "")
    names = ()
    assert ending(command, monkeypatch, capsys) == (1, f"Error: Broken pipe. {RESUME}\n")


def test_a_base_that_cannot_be_scored_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    status, text = ending(raising(BaseNotScored("no such model")), monkeypatch, capsys)
    assert (status, text) == (1, "Error: the base cannot be scored: no such model\n")


def test_an_unforeseen_error_is_one_line_and_a_file_with_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = ValueError(f"{'x' * 300}\nsecond line \udce4")
    error.__cause__ = KeyError("the first cause")
    status, text = ending(raising(error), monkeypatch, capsys)
    (file,) = tmp_path.iterdir()
    shown = "x" * 197
    expected = f"Error: ValueError: {shown}... (unforeseen; please report it with {file})\n"
    assert (status, text) == (70, expected)
    content = file.read_text()
    assert content.startswith("$ ")
    assert "the first cause" in content
    assert "Traceback" in content
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    status, text = ending(raising(error), monkeypatch, capsys)
    assert status == 70
    assert text.count("\n") == 1
    assert "its traceback cannot be written" in text


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (3, 3), ("text", 1)])
def test_other_statuses_are_kept(
    code: object,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    text = "text\n" if code == "text" else ""
    assert ending(raising(SystemExit(code)), monkeypatch, capsys) == (status, text)


def test_a_checkout_that_is_not_installed_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_metadata(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", no_metadata)
    status, text = ending(raising(AssertionError("it began")), monkeypatch, capsys)
    assert status == 2
    assert "no metadata of the package sweepcp" in text
    assert "pip install -e" in text


def shell(command: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m sweepcp"
    return subprocess.run(
        ["bash", "-c", command.replace("sweepcp", program, 1)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_standard_output_is_one_message_and_a_closed_one_is_none():
    full = shell("sweepcp --help > /dev/full")
    assert full.returncode == 1
    assert full.stderr == f"Error: standard output: No space left on device. {RESUME}\n"
    gone = shell("sweepcp --help | true; echo ${PIPESTATUS[0]}")
    assert (gone.stdout, gone.stderr) == ("1\n", "")
    closed = shell("sweepcp --version >&- 2>&- <&-")
    assert closed.returncode == 0


PROGRAM = """
import atexit, os, sys, time
from sweepcp.cli import commands, run_program

class Ignoring:
    def __del__(self):
        print("in", flush=True)
        time.sleep(30)

def work():
    print("began", flush=True)
    time.sleep(30)

def swallow():
    Ignoring()
    try:
        work()
    finally:
        print("cleaned", flush=True)

def write():
    with open("file", "w") as file:
        os.write(1, b"printed by a library")
        file.write("content")

def linger():
    try:
        work()
    finally:
        print("cleaning", flush=True)
        time.sleep(30)

def execute():
    exec("work()", globals())

def wrap():
    try:
        work()
    except BaseException as error:
        raise ValueError("a library wraps it") from error

class Aborting:
    def __del__(self):
        os.abort()  # as libraries in C++ do when they are unloaded

aborting = Aborting()
atexit.register(print, "exit functions have run")
commands.app = globals()[sys.argv[1]]
run_program()
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a command of `PROGRAM` with `python -m`."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start_program(name: str, **options: object) -> subprocess.Popen[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-m", "program", name],
            cwd=tmp_path,
            env=environment,
            **streams | options,
        )

    return start_program


def await_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"
    time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("work", signal.SIGINT),
        ("work", signal.SIGTERM),
        ("work", signal.SIGHUP),
        ("execute", signal.SIGINT),
        ("wrap", signal.SIGUSR2),
    ],
)
def test_a_signal_ends_a_command_with_one_message(name: str, number: signal.Signals, start: Start):
    process = start(name)
    await_line(process, "began")
    process.send_signal(number)
    output, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (128 + number, f"{STOPPED}\n")
    assert output == "exit functions have run\n"


def test_an_interrupt_that_python_ignores_in_a_destructor_is_raised_again(start: Start):
    process = start("swallow")
    await_line(process, "in")
    process.terminate()
    output, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (143, f"{STOPPED}\n")
    assert output == "began\ncleaned\nexit functions have run\n"


def test_a_file_never_takes_the_number_of_a_closed_stream(start: Start, tmp_path: Path):
    process = start("write", stdout=None, preexec_fn=lambda: os.close(1))
    _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (0, "")
    assert (tmp_path / "file").read_text() == "content"


def test_a_second_signal_ends_the_process_at_once(start: Start):
    process = start("linger")
    await_line(process, "began")
    process.terminate()
    await_line(process, "cleaning")
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (143, f"{STOPPED}\n")


def test_sighup_stays_ignored_under_nohup_and_sigint_reaches_commands_in_the_background(
    start: Start,
):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start("work", preexec_fn=ignore)
    await_line(process, "began")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert (process.returncode, text) == (130, f"{STOPPED}\n")


def test_a_library_in_c_cannot_replace_handlers_either():
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with kept_signal_handlers():
            ignore = ctypes.c_void_p(1)
            ctypes.CDLL(None).signal(signal.SIGUSR1, ignore)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert received == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_library_that_starts_cannot_replace_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with kept_signal_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == before
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_search_without_a_trial_that_is_done_states_each_reason_on_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    endings = [("failed", "out of memory"), ("diverged", "loss nan"), ("failed", "out of memory")]
    trials = [SimpleNamespace(status=status, short_reason=reason) for status, reason in endings]
    asked: list[bool] = []

    def run_search(*_: object, retry_failed: bool, **__: object) -> SimpleNamespace:
        asked.append(retry_failed)
        return SimpleNamespace(done=[], trials=trials)

    monkeypatch.setattr(search, "run_search", run_search)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweepcp", "search", "--retry-failed"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        "No trial is done:\n  2 failed: out of memory\n  1 diverged: loss nan\n"
    )
    assert asked == [True]
