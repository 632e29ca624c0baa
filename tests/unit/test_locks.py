"""Locks, and temporary files that killed processes leave behind."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import locked_run
from sweepcp.util.files import clean_cache, new_folder, write_text
from sweepcp.util.locks import exclusive_lock, is_locked
from sweepcp.util.temporary import remove_abandoned, temporary_file, temporary_folder

HOLD = """
import os, signal, sys
from pathlib import Path
from sweepcp.util.temporary import temporary_file, temporary_folder
folder = Path(sys.argv[1])
with temporary_file(folder / "base.json"), temporary_folder(folder, "bundle") as work:
    (work / "bundle.json").touch()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_warned_of_and_not_another_search(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
):
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = tmp_path / "driver.lock"
    with caplog.at_level(logging.WARNING, logger="sweepcp"), exclusive_lock(lock, "one search"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        write_text(tmp_path / "base.json", "{}")
    (message,) = caplog.messages
    assert message == (
        f"the file system has no locks ({os.strerror(number)}): make sure that no other process "
        "writes here"
    )
    assert not is_locked(lock)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["base.json", "driver.lock"]


def test_without_locks_the_holder_that_runs_on_this_machine_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    lock = tmp_path / "driver.lock"
    lock.write_text(f"process {os.getppid()} on {os.uname().nodename}")
    assert not is_locked(lock)  # with locks, nothing else counts
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert is_locked(lock)
    with pytest.raises(InvalidInput, match="one search"), exclusive_lock(lock, "one search"):
        pass
    lock.write_text("process 12 on another-machine")
    with exclusive_lock(lock, "one search"):
        assert "the last one was process 12 on another-machine" in caplog.text


def test_a_lock_that_is_held_is_refused_and_names_its_holder(tmp_path: Path):
    lock = tmp_path / "driver.lock"
    with exclusive_lock(lock, "one search"):
        assert is_locked(lock)
        with pytest.raises(InvalidInput) as error, exclusive_lock(lock, "one search"):
            pass
        assert str(error.value.found).startswith(f"process {os.getpid()} on ")
    assert not is_locked(lock)


def names(folder: Path) -> list[str]:
    return sorted(path.name.split(".tmp-")[0] for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_uses_is_kept(tmp_path: Path):
    kept = [".gitignore.template", ".x.tmp-short", "base.json"]
    for name in kept:
        (tmp_path / name).touch()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    everything = sorted([".base.json", ".bundle", ".gitignore.template", ".x", "base.json"])
    remove_abandoned(tmp_path)
    assert names(tmp_path) == everything
    process.send_signal(signal.SIGKILL)
    process.communicate()
    remove_abandoned(tmp_path, "another")
    assert names(tmp_path) == everything
    with new_folder(tmp_path / "bundle"):
        assert len([name for name in names(tmp_path) if name == ".bundle"]) == 1
    with locked_run(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*kept, "bundle", "driver.lock"]
    )


def test_the_cache_is_cleaned_in_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path))
    left = [
        tmp_path / "hashes" / ".a.json.tmp-abcd1234",
        tmp_path / "tasks" / "0" / ".a.yaml.tmp-abcd1234",
        tmp_path / "stores" / ".building-0" / ".0.json.tmp-abcd1234",
    ]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    shard = left[-1].with_name("0.json")
    shard.touch()
    clean_cache()
    assert not any(path.exists() for path in left)
    assert shard.exists()


def test_temporary_files_and_folders_are_removed_unless_they_were_renamed(tmp_path: Path):
    with temporary_file(tmp_path / "a") as (_, file), temporary_folder(tmp_path, "b") as folder:
        assert file.exists()
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
    with temporary_file(tmp_path / "a") as (_, file), temporary_folder(tmp_path, "b") as folder:
        file.rename(tmp_path / "a")
        folder.rename(tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "base.json").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"base\.json"):
        write_text(tmp_path / "base.json", "after")
    assert (tmp_path / "base.json").read_text() == "before"
    assert names(tmp_path) == ["base.json"]
