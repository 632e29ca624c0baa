"""Commands without a home folder, a working folder, docstrings, or permissions."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweepcp.cli.entry import main
from sweepcp.errors import InvalidInput
from sweepcp.util import environment, files
from sweepcp.util.environment import check_docstrings
from sweepcp.util.files import cache_dir, check_cache, new_folder, write_text
from tests.make_run import write_run


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A user who is in no passwd file, as a container may run under."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "SWEEPCP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    return monkeypatch


def test_without_a_home_folder_the_cache_must_be_named(without_home: pytest.MonkeyPatch):
    with pytest.raises(InvalidInput) as refused:
        cache_dir()
    assert refused.value.key == "SWEEPCP_CACHE"
    assert "SWEEPCP_CACHE" in refused.value.fix
    without_home.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert cache_dir() == Path("/scratch/cache/sweepcp")
    without_home.setenv("SWEEPCP_CACHE", "/scratch/own")
    assert cache_dir() == Path("/scratch/own")


def test_a_cache_that_cannot_be_written_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InvalidInput) as refused:
        check_cache()
    assert refused.value.key == "SWEEPCP_CACHE"
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "new" / "cache"))
    check_cache()


@pytest.fixture
def removed_folder(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    (tmp_path / "removed").mkdir()
    os.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    yield
    os.chdir(before)


@pytest.mark.usefixtures("removed_folder")
@pytest.mark.parametrize("command", [["front", "/run"], ["plan", "quickstart"], ["search"]])
def test_a_working_folder_that_was_removed_is_reported(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["sweepcp", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Error: the working folder" in capsys.readouterr().err


def test_files_and_folders_have_the_permissions_that_the_user_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for mask in (0o022, 0o077):
        monkeypatch.setattr(files, "UMASK", mask)
        path = tmp_path / f"{mask}.txt"
        write_text(path, "x")
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
        folder = tmp_path / f"{mask}"
        with new_folder(folder):
            pass
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


def test_files_of_the_working_folder_do_not_take_the_place_of_modules(tmp_path: Path):
    for name in ("random", "rich", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the folder')")
    run = write_run(tmp_path / "run", 3, documents=8)
    command = [sys.executable, "-OO", "-m", "sweepcp", "front", str(run)]
    shown = subprocess.run(
        command, capture_output=True, cwd=tmp_path, encoding="utf-8", check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "Front of quickstart" in shown.stdout


@pytest.mark.parametrize("arguments", [["schema"], ["data", "check", "--help"]])
def test_commands_work_without_docstrings_and_assertions(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "sweepcp", *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_models_are_refused_where_docstrings_are_removed(monkeypatch: pytest.MonkeyPatch):
    check_docstrings()
    monkeypatch.setattr(environment, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    with pytest.raises(InvalidInput, match="without -OO"):
        check_docstrings()


def test_libraries_read_files_as_utf_8_in_the_c_locale(tmp_path: Path):
    (tmp_path / "file").write_text("größe ≤", encoding="utf-8")
    program = (
        "import subprocess, sys; from sweepcp.util.streams import *; read_files_as_utf_8();"
        "assert len(open('file').read()) == 7;"
        "command = [sys.executable, '-c', 'assert len(open(\"file\").read()) == 7'];"
        "subprocess.run(command, check=True)"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)
