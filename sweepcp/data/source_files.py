"""The files of a source on this machine, and a fingerprint of them."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.data.python_text import find_modules
from sweepcp.errors import InvalidInput, located
from sweepcp.util.json_values import digest

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*JSONL, ".parquet", ".txt")
FIELDS_WITHOUT_EFFECT = {
    "files",
    "weight",
    "role",
    "language",
    "max_epochs",
    "beyond_max_epochs",
    "bad_records",
    "name",
}
"""Fields of a source that change none of its tokens once its files are listed."""
CORRECT_PATH = "correct the path; it is relative to the folder of the experiment file"


@dataclass(frozen=True)
class ResolvedSource:
    """The files of a source; empty for a hub data set and a planned source."""

    paths: tuple[Path, ...] = ()
    """Files in the order in which they are read, or the folder of a saved data set."""
    held_out_paths: tuple[Path, ...] = ()
    """Files that are held out whole."""
    exclude: Path | None = None
    """The list of documents to leave out."""
    skipped: tuple[Path, ...] = ()
    """Files in a named folder that are in no format that can be read."""


def resolve_source(source: Source, *, folder: Path) -> ResolvedSource:
    """List the files of a source without reading them.

    Args:
        source: The source; its paths are relative to `folder`.
        folder: The folder of the experiment file.

    Raises:
        InvalidInput: A path does not exist, cannot be read or contains a link to a folder above it;
            a package is not installed; a corpus is empty; a file is named twice, or both trained on
            and held out. The key is relative to the source, and no file is named.
    """
    exclude = None
    if source.exclude is not None:
        with located(file="", key="exclude"):
            exclude = _existing_path(folder, source.exclude)
    if source.python is not None:
        with located(file="", key="python"):
            modules = find_modules(source.python)
        return ResolvedSource(tuple(modules), exclude=exclude)
    if source.saved is not None:
        with located(file="", key="saved.path"):
            path = _existing_path(folder, source.saved.path)
        return ResolvedSource((path,), exclude=exclude)
    if source.files is None:
        return ResolvedSource(exclude=exclude)
    with located(file="", key="files"):
        paths, skipped = _resolve_patterns(folder, source.files)
    with located(file="", key="held_out_files"):
        held_out, held_out_skipped = _resolve_patterns(folder, source.held_out_files or ())
        _check_disjoint(paths=paths, held_out=held_out)
    return ResolvedSource(
        tuple(paths), tuple(held_out), exclude, skipped=tuple(skipped + held_out_skipped)
    )


def source_fingerprint(source: Source, files: ResolvedSource) -> str:
    """Return 16 hex digits that change if the text of a source, or the way it is read, changes.

    Files count by path, size and modification time; the modules of Python packages by name, size
    and Python version.
    """
    settings = source.model_dump(mode="json", exclude=FIELDS_WITHOUT_EFFECT)
    if source.python is not None:
        modules: list[Any] = [[path.name, path.stat().st_size] for path in files.paths]
        return digest([settings, sys.version_info[:3], modules, _file_stamps(files.exclude)])
    stamps = (
        _file_stamps(*files.paths),
        _file_stamps(*files.held_out_paths),
        _file_stamps(files.exclude),
    )
    return digest([settings, *stamps])


def _resolve_patterns(folder: Path, patterns: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files that can be read, in the order of the patterns, and those that cannot."""
    paths: list[Path] = []
    skipped: list[Path] = []
    for pattern in patterns:
        path = folder / Path(pattern).expanduser()
        if path.is_dir():
            inside = list(_walk_folder(path))
            matches = [file for file in inside if file.name.endswith(SUFFIXES)]
            skipped += [file for file in inside if not file.name.endswith(SUFFIXES)]
        else:
            matches = _expand_glob(path)
            _check_suffixes(matches)
        if not matches:
            raise _no_match(path, folder=folder, pattern=pattern)
        paths += matches
    if patterns:
        _check_not_empty(paths)
    _check_unique(paths)
    return paths, skipped


def _expand_glob(path: Path) -> list[Path]:
    # A name that exists is taken as it is, even if it has characters of a glob in it.
    if path.is_file():
        return [path]
    root = Path(path.anchor)
    pattern = str(path.absolute().relative_to(root.absolute()))
    return sorted(match for match in root.glob(pattern) if match.is_file())


def _walk_folder(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, following links and leaving out hidden ones."""
    for root, folders, names in os.walk(folder, followlinks=True):
        parent = Path(root)
        for name in folders:
            inner = parent / name
            if inner.is_symlink() and parent.resolve().is_relative_to(inner.resolve()):
                rule = "a folder without links that lead back to a folder above them"
                fix = "remove the link, or name the files by a glob"
                raise InvalidInput(found=str(inner), rule=rule, fix=fix)
        # os.walk descends into what is left in `folders`, in that order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (parent / name for name in sorted(names) if not name.startswith("."))


def _existing_path(folder: Path, name: str) -> Path:
    path = (folder / Path(name).expanduser()).absolute()
    if not path.exists():
        rule = f"an existing path (looked for {path})"
        raise InvalidInput(found=name, rule=rule, fix=CORRECT_PATH)
    return path


def _no_match(path: Path, *, folder: Path, pattern: str) -> InvalidInput:
    if path.is_symlink():
        rule = "a link that leads to a file; this one leads nowhere, or to itself"
        return InvalidInput(found=pattern, rule=rule, fix=f"correct or remove the link {path}")
    rule = f"a file, or a folder of files, below {folder}"
    return InvalidInput(found=pattern, rule=rule, fix=CORRECT_PATH)


def _check_suffixes(paths: list[Path]) -> None:
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            rule = f"a file name that ends in one of {', '.join(SUFFIXES)}"
            raise InvalidInput(found=str(path), rule=rule, fix="convert or rename it")


def _check_not_empty(paths: list[Path]) -> None:
    if sum(map(_readable_size, paths)) == 0:
        names = ", ".join(map(str, paths[:3]))
        rule = "files with text; these are empty"
        raise InvalidInput(found=names, rule=rule, fix="name files that contain text")


def _check_unique(paths: list[Path]) -> None:
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        fix = "name it once; two globs may both match it"
        raise InvalidInput(found=str(min(repeated)), rule="a file is named once", fix=fix)


def _check_disjoint(*, paths: list[Path], held_out: list[Path]) -> None:
    shared = {path.resolve() for path in paths} & {path.resolve() for path in held_out}
    if shared:
        rule = "a file is trained on or held out, not both"
        fix = "remove it from `files` or from `held_out_files`"
        raise InvalidInput(found=str(min(shared)), rule=rule, fix=fix)


def _readable_size(path: Path) -> int:
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        rule = f"a file that can be read ({error.strerror})"
        fix = "grant read permission, correct the link, or leave the file out"
        raise InvalidInput(found=str(path), rule=rule, fix=fix) from None


def _file_stamps(*paths: Path | None) -> list[list[str | int]]:
    """Return path, size and modification time of files; a folder counts by the files in it."""
    files: list[Path] = []
    for path in paths:
        if path is not None:
            files += sorted(path.rglob("*")) if path.is_dir() else [path]
    stamps: list[list[str | int]] = []
    for file in files:
        status = file.stat()
        stamps.append([str(file.absolute()), status.st_size, status.st_mtime_ns])
    return stamps
