"""The files that the paths and globs of a source stand for."""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from sweepcp.errors import InvalidInput
from sweepcp.util.paths import describe_kind

GLOB = re.compile(r"[*?\[]")
FileIdentity = tuple[int, int]
"""Device and inode."""


def file_identity(path: Path) -> FileIdentity:
    """Return what two paths have in common if they lead to the same file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def expand_pattern(path: Path) -> dict[Path, bool]:
    """Return the files that a path or glob stands for, in order.

    A part of a path that exists is a name, even if it has characters of a glob in it. `**` stands
    for any folders; it follows no links, and like `*` it leaves out hidden names.

    Returns:
        Each file, which need not be a regular one, and whether it was found in a folder that the
        path stands for.

    Raises:
        InvalidInput: A folder contains itself by links.
        OSError: A folder cannot be read.
    """
    path = path.absolute()
    matches = [Path(path.anchor)]
    for part in path.parts[1:]:
        found: list[Path] = []
        for match in matches:
            found += _expand_part(match, part)
        # `**/**` finds a folder once for each folder above it.
        matches = list(dict.fromkeys(found))
    files: dict[Path, bool] = {}
    for match in sorted(matches):
        is_folder = match.is_dir()
        for file in walk_folder(match) if is_folder else [match]:
            files.setdefault(file, is_folder)
    return files


def walk_folder(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, following links and leaving out hidden ones.

    Raises:
        InvalidInput: A folder contains itself by links.
        OSError: A folder cannot be read.
    """
    waiting: list[tuple[Path, frozenset[FileIdentity]]] = [(folder, frozenset())]
    while waiting:
        parent, above = waiting.pop()
        identity = file_identity(parent)
        if identity in above:
            rule = "a folder without links that lead back to a folder above them"
            fix = "remove the link, or name the files by a glob"
            raise InvalidInput(found=str(parent), rule=rule, fix=fix)
        folders: list[Path] = []
        for path in _visible_entries(parent):
            if path.is_dir():
                folders.append(path)
            else:
                yield path
        # Taken from the end: the first of them first, and what is below it before the next.
        waiting += [(path, above | {identity}) for path in reversed(folders)]


def check_is_file(path: Path) -> None:
    """Raise `InvalidInput` for what is no regular file: reading a pipe would wait for a writer."""
    if not path.is_file():
        raise InvalidInput(
            found=str(path),
            rule=f"a file; this is {describe_kind(path)}",
            fix="correct or remove it, or name the files by a glob",
        )


def _expand_part(folder: Path, part: str) -> list[Path]:
    """Return what one part of a path stands for in a folder."""
    path = folder / part
    if os.path.lexists(path):
        return [path]
    if not GLOB.search(part) or not folder.is_dir():
        return []
    if part == "**":
        below = [folder]
        for inner in below:
            entries = _visible_entries(inner)
            below += [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
        return below
    wants_hidden = part.startswith(".")
    return [
        entry
        for entry in folder.iterdir()
        if fnmatchcase(entry.name, part) and (wants_hidden or not entry.name.startswith("."))
    ]


def _visible_entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
