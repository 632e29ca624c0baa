"""The commit of the working folder, and nothing that its repository would run."""

import subprocess
from pathlib import Path

import pytest

from sweepcp.promote.work_tree import current_commit


def git(*command: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    result = subprocess.run(["git", *identity, *command], capture_output=True, check=True)
    return result.stdout.decode().strip()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree with one commit, which is also the working folder."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "tree"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    (folder / "file").write_text("text\n")
    git("add", "file")
    git("commit", "-qm", "first")
    return folder


def test_a_commit_and_whether_files_have_changed(tree: Path):
    commit = git("rev-parse", "HEAD")
    (tree / "untracked").touch()
    assert current_commit() == commit
    (tree / "file").write_text("other\n")
    assert current_commit() == f"{commit}-dirty"
    git("add", "file")
    assert current_commit() == f"{commit}-dirty"


def test_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert current_commit() is None
    git("init", "-q")
    assert current_commit() is None
    monkeypatch.setenv("PATH", "")
    assert current_commit() is None


@pytest.mark.parametrize("kind", ["clean", "process"])
def test_a_repository_runs_nothing(tree: Path, kind: str):
    marker = tree / "RAN"
    git("config", "core.fsmonitor", f"touch '{marker}'; false")
    git("config", f"filter.a=b.{kind}", f"touch '{marker}'; cat")
    git("config", "filter.a=b.required", "true")
    (tree / ".git/info/attributes").write_text("* filter=a=b\n")
    hook = tree / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    hook.chmod(0o755)
    # Git compares the content of a file whose time stamp is not that of the index.
    (tree / "file").write_text("text\n")
    assert current_commit() == git("rev-parse", "HEAD")
    assert not marker.exists()


def test_a_submodule_runs_nothing(tree: Path):
    marker = tree / "RAN"
    git("clone", "-q", str(tree), "inner")
    git("add", "inner")
    git("commit", "-qm", "second")
    git("-C", "inner", "config", "core.fsmonitor", f"touch '{marker}'; false")
    (tree / "inner/file").write_text("other\n")
    assert current_commit() == git("rev-parse", "HEAD")
    assert not marker.exists()


def test_no_missing_commit_is_fetched(tree: Path):
    marker = tree / "RAN"
    git("config", "extensions.partialClone", "origin")
    git("config", "remote.origin.url", f"ext::sh -c touch% '{marker}'")
    git("config", "remote.origin.promisor", "true")
    git("config", "protocol.ext.allow", "always")
    (tree / ".git/HEAD").write_text("1" * 40 + "\n")
    current_commit()
    assert not marker.exists()
