"""Corpora, as an experiment names them, and the files that they are found in."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sweepcp.data.python_text import PythonText, find_modules
from sweepcp.data.template import Template
from sweepcp.errors import BadInput
from sweepcp.files import digest
from sweepcp.recipe import Fraction, Positive, Role
from sweepcp.schema import Schema

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
ENDINGS = (*JSONL, ".parquet", ".txt")
COMMIT = r"^[0-9a-f]{40}$"


class Filters(Schema):
    """Which documents of a source count. What is left out is counted by reason."""

    min_chars: Annotated[int, Field(ge=1)] | None = None
    max_chars: Annotated[int, Field(ge=1)] | None = None
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Keep documents that are detected to be in one of these (ISO 639-1 codes)."""
    keep: str | None = None
    """Keep documents in which this regular expression is found."""
    drop: str | None = None
    """Leave out documents in which this regular expression is found."""

    @field_validator("keep", "drop")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}; fix: mend the pattern") from None
        return pattern


class Hub(Schema):
    """A data set of the hub, pinned to a commit, read as a stream."""

    id: str
    revision: Annotated[str, Field(pattern=COMMIT)]
    """The 40 hex digits of a commit: a branch may change between two builds."""
    subset: str | None = None
    split: str = "train"


class Saved(Schema):
    """A folder that `datasets.Dataset.save_to_disk` wrote, relative to the experiment file."""

    path: str
    split: str | None = None
    """For a folder that holds several splits."""


class Source(Schema):
    """One corpus: its role, its language, and exactly one of `files`, `saved`, `hub`, `python` and `planned_tokens`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    role: Role
    language: str = "en"
    """A language code; `en` is what the non-English share leaves out."""
    weight: Positive | None = None
    """Its part of its role's share, relative to the other sources of the role; by default its tokens."""

    files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Files, folders or globs, relative to the experiment file: JSONL (plain, .gz, .zst), Parquet, .txt."""
    saved: Saved | None = None
    hub: Hub | None = None
    python: PythonText | None = None
    planned_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a corpus that is not here: enough for `plan`, not for `search`."""

    field: str = "text"
    """The key of a record that holds the text."""
    template: Template | None = None
    """In place of `field`: lines of text with `{keys}` of the record. A line whose key is missing or empty vanishes."""
    unit: Literal["file", "paragraph", "line"] = "file"
    """What a document is in a .txt file; paragraphs are parted by empty lines."""

    filters: Filters = Filters()
    exclude: str | None = None
    """A JSONL file with the `id` of each document to leave out, relative to the experiment file; see `data check`."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """`drop` leaves out what resembles an earlier document of the source; `keep` saves the work for clean corpora."""
    max_document_bytes: Annotated[int, Field(ge=1)] = 4 << 20
    """A longer document is a bad record: it would need a lot of memory, and is rarely one document."""
    bad_records: Fraction = 0.0
    """Share of the records that may be unusable: they are skipped and counted. Above it, the source is refused."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents that is never trained on, drawn by the hash of their text."""
    held_out_files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """In place of `held_out`: files that are held out whole, beside `files` that are trained on whole."""
    max_epochs: Positive = 4.0
    """More epochs than this are warned of, or refused."""
    beyond_max_epochs: Literal["warn", "refuse"] = "warn"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        origins = ("files", "saved", "hub", "python", "planned_tokens")
        if sum(getattr(self, name) is not None for name in origins) != 1:
            names = f"{', '.join(origins[:-1])} and {origins[-1]}"
            raise ValueError(f"a source has exactly one of {names}; fix: keep one, such as `files: [corpus.jsonl]`")
        if self.template is not None and "field" in self.model_fields_set:
            raise ValueError("a record becomes text by its field or by a template; fix: remove one of the two")
        if self.held_out_files is not None and (self.files is None or "held_out" in self.model_fields_set):
            raise ValueError("held_out_files stands beside files and in place of held_out; fix: remove one of the two")
        return self


@dataclass(frozen=True)
class Found:
    """Where a source's texts are on this machine; nothing for a hub data set and a planned source."""

    paths: tuple[Path, ...] = ()
    """Files in the order in which they are read, or the folder of a saved data set."""
    held_out: tuple[Path, ...] = ()
    exclude: Path | None = None
    passed_over: tuple[Path, ...] = ()
    """Files in a named folder that are of no kind that can be read."""


def find(source: Source, folder: Path, where: object) -> Found:
    """The files of a source, looked up from `folder`. Reads no text.

    Raises `BadInput` for a path that is not there, cannot be read or goes round in circles, a package that is not
    installed, a corpus without a byte, and a file that is both trained on and held out.
    """
    key = f"sources.{source.name}"
    exclude = None
    if source.exclude is not None:
        exclude = _existing(folder, source.exclude, where, f"{key}.exclude")
    if source.python is not None:
        return Found(tuple(find_modules(source.python, where, f"{key}.python.packages")), exclude=exclude)
    if source.saved is not None:
        path = _existing(folder, source.saved.path, where, f"{key}.saved.path")
        return Found((path,), exclude=exclude)
    if source.files is None:
        return Found(exclude=exclude)
    paths, passed_over = _find_all(folder, source.files, where, f"{key}.files")
    held_out, more = _find_all(folder, source.held_out_files or (), where, f"{key}.held_out_files")
    both = {p.resolve() for p in paths} & {p.resolve() for p in held_out}
    if both:
        rule = "a file is trained on or held out, not both"
        raise BadInput(where, f"{key}.held_out_files", str(min(both)), rule, "remove it from one of the two lists")
    return Found(tuple(paths), tuple(held_out), exclude, tuple(passed_over + more))


def _find_all(folder: Path, patterns: tuple[str, ...], where: object, key: str) -> tuple[list[Path], list[Path]]:
    paths: list[Path] = []
    passed_over: list[Path] = []
    for pattern in patterns:
        path = folder / Path(pattern).expanduser()
        if path.is_dir():
            inside = list(_walk(path, where, key))
            found = [p for p in inside if p.name.endswith(ENDINGS)]
            passed_over += [p for p in inside if not p.name.endswith(ENDINGS)]
        else:
            found = _expand(path)
            for p in found:
                if not p.name.endswith(ENDINGS):
                    raise BadInput(where, key, str(p), f"a file ends in {', '.join(ENDINGS)}", "convert or rename it")
        if not found:
            raise _nothing(path, folder, pattern, where, key)
        paths += found
    if patterns and not sum(_size(path, where, key) for path in paths):
        names = ", ".join(str(p) for p in paths[:3])
        raise BadInput(where, key, names, "a corpus holds text, this one is empty", "name files with text")
    twice = sorted(p for p in set(paths) if paths.count(p) > 1) if len(paths) > len(set(paths)) else []
    if twice:
        raise BadInput(where, key, str(twice[0]), "a file is read once", "name it once; mind overlapping globs")
    return paths, passed_over


def _nothing(path: Path, folder: Path, pattern: str, where: object, key: str) -> BadInput:
    if path.is_symlink():
        rule = "a link leads to a file; this one leads nowhere, or to itself"
        return BadInput(where, key, pattern, rule, f"mend or remove the link {path}")
    fix = "correct the path; it is relative to the folder of the experiment file"
    return BadInput(where, key, pattern, f"a file, or a folder of files, below {folder}", fix)


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    root = Path(path.anchor)
    return sorted(p for p in root.glob(str(path.absolute().relative_to(root.absolute()))) if p.is_file())


def _walk(folder: Path, where: object, key: str) -> Iterator[Path]:
    """The files below a folder, sorted, links followed; hidden ones are none."""
    for path, folders, names in os.walk(folder, followlinks=True):
        here = Path(path)
        for name in list(folders):
            inner = here / name
            if inner.is_symlink() and here.resolve().is_relative_to(inner.resolve()):
                rule = "the folders of a corpus end somewhere; this link leads back to a folder above it"
                raise BadInput(where, key, str(inner), rule, "remove the link, or name the files by a glob")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _size(path: Path, where: object, key: str) -> int:
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        rule = f"a file that can be read ({error.strerror})"
        raise BadInput(where, key, str(path), rule, "mend its rights or the link, or leave it out") from None


def _existing(folder: Path, name: str, where: object, key: str) -> Path:
    path = (folder / Path(name).expanduser()).absolute()
    if not path.exists():
        fix = "correct the path; it is relative to the folder of the experiment file"
        raise BadInput(where, key, name, f"an existing path (looked for {path})", fix)
    return path


HOW = {"files", "weight", "role", "language", "max_epochs", "beyond_max_epochs", "bad_records", "name"}
"""Fields of a source that change none of its tokens, once its files are known."""


def fingerprint(source: Source, found: Found) -> str:
    """16 hex digits that change when the texts or the way of reading them change.

    Files count by path, size and time of change; Python packages by path inside the package, size and Python version.
    """
    how = source.model_dump(mode="json", exclude=HOW)
    if source.python is not None:
        listed: list[Any] = [[path.name, path.stat().st_size] for path in found.paths]
        return digest([how, sys.version_info[:3], listed, _stamps(found.exclude)])
    return digest([how, *(_stamps(*group) for group in (found.paths, found.held_out, (found.exclude,)))])


def _stamps(*paths: Path | None) -> list[list[str | int]]:
    """Path, size and time of change of files; a folder counts by the files in it."""
    files = [p for path in paths if path for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
