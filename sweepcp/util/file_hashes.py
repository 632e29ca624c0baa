"""SHA-256 of files by content, cached so that a file is read again only after it has changed.

The cache has one JSON file per folder, `hashes/<key>.json` in the cache folder: name → size,
modification and change time in ns, hash. Processes replace it atomically; if two write at once,
the entries of one are lost and its files are read again. A cache that is corrupt or cannot be
written costs time only.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.parallel import usable_cores

logger = logging.getLogger(__name__)
SHA256 = re.compile(r"[0-9a-f]{64}")
CLOCK_TICK_NS = 20_000_000
"""File systems state times to within this: a file that was written twice in it looks unchanged."""
Stamps = tuple[int, int, int]
"""Size, modification time and change time of a file."""
FileEntry = tuple[Stamps, str]
"""The stamps of a file, and the SHA-256 of its content then."""


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, see `content_hashes`."""
    return content_hashes([path])[0]


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of the content of files, as 64 hex digits each.

    Files are read in threads, and only those whose path, size, modification time or change time is
    not that of an earlier call, of this process or another. A change that leaves all of these as
    they were is out of reach.

    Raises:
        InvalidInput: A file is missing or cannot be read. The error names no file.
    """
    files = [Path(os.path.realpath(path)) for path in paths]
    hashes = _cached_hashes(files)
    missing = [file for file in dict.fromkeys(files) if file not in hashes]
    pool = ThreadPoolExecutor(usable_cores())
    reading = {file: pool.submit(_read_hash, file) for file in missing}
    try:
        hashes |= {file: future.result()[1] for file, future in reading.items()}
    finally:
        pool.shutdown(cancel_futures=True)
        # Also after an interrupt: what was read of a large model need not be read again.
        _save_hashes(_finished(reading))
    return [hashes[file] for file in files]


def _finished(reading: dict[Path, Future[FileEntry]]) -> dict[Path, FileEntry]:
    """Return the entries of the files that were read to their end."""
    ended = {file: future for file, future in reading.items() if not future.cancelled()}
    return {file: future.result() for file, future in ended.items() if future.exception() is None}


def cached_hashes(paths: Sequence[Path]) -> list[str] | None:
    """Return `content_hashes` without reading a file; None if one would have to be read."""
    files = [Path(os.path.realpath(path)) for path in paths]
    hashes = _cached_hashes(files)
    return [hashes[file] for file in files] if set(files) <= set(hashes) else None


def _cached_hashes(files: Iterable[Path]) -> dict[Path, str]:
    """Return the hashes of the files that have not changed since they were cached."""
    by_folder: defaultdict[Path, set[Path]] = defaultdict(set)
    for file in files:
        by_folder[file.parent].add(file)
    hashes: dict[Path, str] = {}
    for folder, members in by_folder.items():
        entries = _read_entries(_cache_file(folder))
        for file in members & {folder / name for name in entries}:
            stamps, sha256 = entries[file.name]
            # A file that was removed since is reported where it is read.
            with suppress(OSError):
                if stamps == _stamps(file.stat()):
                    hashes[file] = sha256
    return hashes


def _read_hash(file: Path) -> FileEntry:
    """Return a file's stamps from before it was read, and its hash."""
    try:
        with file.open("rb") as content:
            status = os.fstat(content.fileno())
            age = time.time_ns() - status.st_mtime_ns
            if 0 <= age < CLOCK_TICK_NS:
                # Whatever is written from now on has other stamps.
                time.sleep((CLOCK_TICK_NS - age) / 1e9)
            return _stamps(status), hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(
            found=str(file),
            rule=f"a file that can be read ({error.strerror})",
            fix="restore the file, or grant read permission",
        ) from None


def _save_hashes(fresh: dict[Path, FileEntry]) -> None:
    """Add hashes to the cache, of files that did not change while they were read."""
    by_folder: defaultdict[Path, dict[str, FileEntry]] = defaultdict(dict)
    for file, entry in fresh.items():
        by_folder[file.parent][file.name] = entry
    for folder, entries in by_folder.items():
        path = _cache_file(folder)
        # JSON escapes what is no UTF-8 in a file name.
        content = json.dumps(_read_entries(path) | entries)
        try:
            write_text(path, content)
        except OSError as error:
            logger.debug("hashes of files in %s are not cached: %s", folder, error)


def _read_entries(path: Path) -> dict[str, FileEntry]:
    """Return the cached entries of a folder, by file name; none if the cache is corrupt."""
    try:
        content = json.loads(path.read_bytes())
        return {
            name: ((size, modified, changed), sha256)
            for name, ((size, modified, changed), sha256) in content.items()
            if SHA256.fullmatch(sha256)
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _cache_file(folder: Path) -> Path:
    key = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return cache_dir() / "hashes" / f"{key}.json"


def _stamps(status: os.stat_result) -> Stamps:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
