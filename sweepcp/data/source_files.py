"""Corpora, as an experiment names them, and the files that they are found in."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.data.python_text import find_modules
from sweepcp.errors import InvalidInput
from sweepcp.util.json_values import digest

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*JSONL, ".parquet", ".txt")


@dataclass(frozen=True)
class ResolvedSource:
    """Where a source's texts are on this machine; nothing for a hub data set and a planned source."""

    paths: tuple[Path, ...] = ()
    """Files in the order in which they are read, or the folder of a saved data set."""
    held_out: tuple[Path, ...] = ()
    exclude: Path | None = None
    passed_over: tuple[Path, ...] = ()
    """Files in a named folder that are of no kind that can be read."""


def resolve_source(source: Source, folder: Path, where: object) -> ResolvedSource:
    """The files of a source, looked up from `folder`. Reads no text.

    Raises `BadInput` for a path that is not there, cannot be read or goes round in circles, a package that is not
    installed, a corpus without a byte, and a file that is both trained on and held out.
    """
    key = f"sources.{source.name}"
    exclude = None
    if source.exclude is not None:
        exclude = _existing_path(folder, source.exclude, where, f"{key}.exclude")
    if source.python is not None:
        return ResolvedSource(
            tuple(find_modules(source.python, where, f"{key}.python.packages")), exclude=exclude
        )
    if source.saved is not None:
        path = _existing_path(folder, source.saved.path, where, f"{key}.saved.path")
        return ResolvedSource((path,), exclude=exclude)
    if source.files is None:
        return ResolvedSource(exclude=exclude)
    paths, passed_over = _resolve_patterns(folder, source.files, where, f"{key}.files")
    held_out, more = _resolve_patterns(
        folder, source.held_out_files or (), where, f"{key}.held_out_files"
    )
    both = {p.resolve() for p in paths} & {p.resolve() for p in held_out}
    if both:
        rule = "a file is trained on or held out, not both"
        raise InvalidInput(
            file=where,
            key=f"{key}.held_out_files",
            found=str(min(both)),
            rule=rule,
            fix="remove it from one of the two lists",
        )
    return ResolvedSource(tuple(paths), tuple(held_out), exclude, tuple(passed_over + more))


def _resolve_patterns(
    folder: Path, patterns: tuple[str, ...], where: object, key: str
) -> tuple[list[Path], list[Path]]:
    paths: list[Path] = []
    passed_over: list[Path] = []
    for pattern in patterns:
        path = folder / Path(pattern).expanduser()
        if path.is_dir():
            inside = list(_walk_folder(path, where, key))
            found = [p for p in inside if p.name.endswith(SUFFIXES)]
            passed_over += [p for p in inside if not p.name.endswith(SUFFIXES)]
        else:
            found = _expand_glob(path)
            for p in found:
                if not p.name.endswith(SUFFIXES):
                    raise InvalidInput(
                        file=where,
                        key=key,
                        found=str(p),
                        rule=f"a file ends in {', '.join(SUFFIXES)}",
                        fix="convert or rename it",
                    )
        if not found:
            raise _no_match(path, folder, pattern, where, key)
        paths += found
    if patterns and not sum(_readable_size(path, where, key) for path in paths):
        names = ", ".join(str(p) for p in paths[:3])
        raise InvalidInput(
            file=where,
            key=key,
            found=names,
            rule="a corpus holds text, this one is empty",
            fix="name files with text",
        )
    twice = (
        sorted(p for p in set(paths) if paths.count(p) > 1) if len(paths) > len(set(paths)) else []
    )
    if twice:
        raise InvalidInput(
            file=where,
            key=key,
            found=str(twice[0]),
            rule="a file is read once",
            fix="name it once; mind overlapping globs",
        )
    return paths, passed_over


def _no_match(path: Path, folder: Path, pattern: str, where: object, key: str) -> InvalidInput:
    if path.is_symlink():
        rule = "a link leads to a file; this one leads nowhere, or to itself"
        return InvalidInput(
            file=where, key=key, found=pattern, rule=rule, fix=f"mend or remove the link {path}"
        )
    fix = "correct the path; it is relative to the folder of the experiment file"
    return InvalidInput(
        file=where,
        key=key,
        found=pattern,
        rule=f"a file, or a folder of files, below {folder}",
        fix=fix,
    )


def _expand_glob(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    root = Path(path.anchor)
    return sorted(
        p for p in root.glob(str(path.absolute().relative_to(root.absolute()))) if p.is_file()
    )


def _walk_folder(folder: Path, where: object, key: str) -> Iterator[Path]:
    """The files below a folder, sorted, links followed; hidden ones are none."""
    for path, folders, names in os.walk(folder, followlinks=True):
        here = Path(path)
        for name in list(folders):
            inner = here / name
            if inner.is_symlink() and here.resolve().is_relative_to(inner.resolve()):
                rule = "the folders of a corpus end somewhere; this link leads back to a folder above it"
                raise InvalidInput(
                    file=where,
                    key=key,
                    found=str(inner),
                    rule=rule,
                    fix="remove the link, or name the files by a glob",
                )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _readable_size(path: Path, where: object, key: str) -> int:
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        rule = f"a file that can be read ({error.strerror})"
        raise InvalidInput(
            file=where,
            key=key,
            found=str(path),
            rule=rule,
            fix="mend its rights or the link, or leave it out",
        ) from None


def _existing_path(folder: Path, name: str, where: object, key: str) -> Path:
    path = (folder / Path(name).expanduser()).absolute()
    if not path.exists():
        fix = "correct the path; it is relative to the folder of the experiment file"
        raise InvalidInput(
            file=where, key=key, found=name, rule=f"an existing path (looked for {path})", fix=fix
        )
    return path


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
"""Fields of a source that change none of its tokens, once its files are known."""


def source_fingerprint(source: Source, found: ResolvedSource) -> str:
    """16 hex digits that change when the texts or the way of reading them change.

    Files count by path, size and time of change; Python packages by path inside the package, size and Python version.
    """
    how = source.model_dump(mode="json", exclude=FIELDS_WITHOUT_EFFECT)
    if source.python is not None:
        listed: list[Any] = [[path.name, path.stat().st_size] for path in found.paths]
        return digest([how, sys.version_info[:3], listed, _file_stamps(found.exclude)])
    return digest(
        [how, *(_file_stamps(*group) for group in (found.paths, found.held_out, (found.exclude,)))]
    )


def _file_stamps(*paths: Path | None) -> list[list[str | int]]:
    """Path, size and time of change of files; a folder counts by the files in it."""
    files = [
        p for path in paths if path for p in (sorted(path.rglob("*")) if path.is_dir() else [path])
    ]
    return [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
