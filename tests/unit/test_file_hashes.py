"""Hashes of files by content, and the cache that keeps unchanged files from being read again."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweepcp.errors import InvalidInput
from sweepcp.util import file_hashes
from sweepcp.util.file_hashes import cached_hashes, content_hashes, content_sha256
from sweepcp.util.files import cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, in any order."""
    names: list[str] = []
    read = file_hashes._read_hash

    def record(file: Path) -> tuple[file_hashes.Stamps, str]:
        names.append(file.name)
        return read(file)

    monkeypatch.setattr(file_hashes, "_read_hash", record)
    return names


def write_files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(f"content {number}")
    return paths


def expected(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_hashes_are_those_of_the_content_in_the_order_of_the_paths(tmp_path: Path):
    paths = write_files(tmp_path / "a", 5) + write_files(tmp_path / "b", 2)
    paths = [*paths[::-1], paths[0]]
    assert content_hashes(paths) == expected(paths)
    assert content_hashes(paths) == expected(paths)
    assert content_hashes([]) == []


def test_only_files_whose_stamps_have_changed_are_read_again(tmp_path: Path, reads: list[str]):
    paths = write_files(tmp_path / "a", 4)
    content_hashes(paths)
    assert sorted(reads) == ["0.txt", "1.txt", "2.txt", "3.txt"]
    reads.clear()
    content_hashes(paths)
    assert reads == []
    paths[1].write_text("another")
    os.utime(paths[2])
    assert content_hashes(paths) == expected(paths)
    assert sorted(reads) == ["1.txt", "2.txt"]
    reads.clear()
    assert content_sha256(paths[0]) == expected(paths)[0]
    link = tmp_path / "link"
    link.symlink_to(paths[3])
    assert content_sha256(link) == expected(paths)[3]
    assert reads == []


def test_a_change_of_the_same_size_and_time_is_noticed(tmp_path: Path):
    (path,) = write_files(tmp_path / "a", 1)
    times = path.stat()
    before = content_sha256(path)
    path.write_text("contend 0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert [content_sha256(path)] == expected([path]) != [before]


def test_a_file_that_changes_at_once_after_it_was_hashed_is_read_again(tmp_path: Path):
    path = tmp_path / "a.txt"
    for number in range(10):
        path.write_text(f"{number}")
        assert [content_sha256(path)] == expected([path])


def test_cached_hashes_read_nothing(tmp_path: Path, reads: list[str]):
    paths = write_files(tmp_path / "a", 3)
    assert cached_hashes(paths) is None
    content_hashes(paths[:2])
    reads.clear()
    assert cached_hashes(paths) is None
    assert cached_hashes(paths[:2]) == expected(paths[:2])
    os.utime(paths[0])
    assert cached_hashes(paths[:2]) is None
    assert reads == []


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"0.txt": 1}', '{"0.txt": [[1, 2, 3], "no hash"]}', '{"0.txt": []}']
)
def test_a_corrupt_cache_costs_time_only(tmp_path: Path, damage: str):
    paths = write_files(tmp_path / "a", 1)
    content_hashes(paths)
    (entry,) = (cache_dir() / "hashes").iterdir()
    entry.write_text(damage)
    assert content_hashes(paths) == expected(paths)
    assert list(json.loads(entry.read_text())) == ["0.txt"]


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
):
    paths = write_files(tmp_path / "a", 2)
    # A file where the folder should be: permissions do not stop root, who may run this.
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "blocked"))
    assert content_hashes(paths) == expected(paths)
    assert content_hashes(paths) == expected(paths)
    assert len(reads) == 4


def test_names_that_are_no_utf_8_are_cached(tmp_path: Path, reads: list[str]):
    folder = tmp_path / os.fsdecode(b"f\xe4lle")
    path = folder / os.fsdecode(b"caf\xe9.txt")
    folder.mkdir()
    path.write_text("content")
    assert content_hashes([path]) == expected([path])
    reads.clear()
    assert content_hashes([path]) == expected([path])
    assert reads == []


def test_a_missing_file_is_refused_and_what_was_read_is_kept(tmp_path: Path, reads: list[str]):
    paths = write_files(tmp_path / "a", 2)
    with pytest.raises(InvalidInput, match="No such file") as error:
        content_hashes([*paths, tmp_path / "a" / "none"])
    assert error.value.found == str(tmp_path / "a" / "none")
    reads.clear()
    content_hashes(paths)
    assert reads == []


def test_processes_share_the_cache_while_all_write_it(tmp_path: Path):
    paths = write_files(tmp_path / "a", 30)
    code = """
import sys
from pathlib import Path
from sweepcp.util.file_hashes import content_hashes
paths = [Path(name) for name in sys.argv[1:]]
for size in (7, 19, 30):
    content_hashes(paths[:size])
print("\\n".join(content_hashes(paths)))
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate()
        assert out.split() == expected(paths)
    assert content_hashes(paths) == expected(paths)
