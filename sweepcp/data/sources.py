"""Corpora: where their documents come from, and how one is read."""

import ast
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sweepcp.errors import BadInput
from sweepcp.files import digest
from sweepcp.recipe import Positive, Role
from sweepcp.schema import Schema

SAMPLE_FILES = 25
SAMPLE_BYTES = 1 << 20
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "__pycache__",
    "pydoc_data",
}  # tests; pydoc_data is read as docs


class PythonText(Schema):
    """Text that is inside installed Python packages: one document a module, test packages left out.

    `docs` is the modules' docstrings (and the language reference that pydoc carries, for `stdlib`), `code` the same
    modules' code without docstrings and comments.
    """

    part: Literal["docs", "code"]
    packages: tuple[str, ...] = Field(default=("stdlib",), min_length=1)
    """`stdlib`, or import names of installed packages."""


class Source(Schema):
    """One corpus: its role, its language, and exactly one of `files`, `python` and `planned_tokens`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    role: Role
    language: str = "en"
    """A language code; `en` is what the non-English share leaves out."""
    weight: Positive | None = None
    """Its part of its role's share, relative to the other sources of the role; by default its tokens."""
    files: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Paths or globs, relative to the experiment file: `.jsonl`, or `.txt` with one document a file."""
    field: str = "text"
    """The key of a JSONL record that holds the text."""
    python: PythonText | None = None
    planned_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a corpus that is not here: enough for `plan`, not for `search`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents that is never trained on, drawn by the hash of their text."""
    max_epochs: Positive = 4.0
    """Warn when a trial would read the source more often than this."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(x is not None for x in (self.files, self.python, self.planned_tokens)) != 1:
            raise ValueError(
                "a source has exactly one of files, python and planned_tokens; "
                "fix: keep one, such as `files: [corpus.jsonl]`"
            )
        return self


def find_files(source: Source, folder: Path, where: object) -> list[Path]:
    """The files of a source, sorted, looked up from `folder`; empty for a planned one. Reads no text.

    Raises `BadInput` for a path that is not there, a package that is not installed, and a corpus without a byte.
    """
    key = f"sources.{source.name}"
    if source.python is not None:
        paths = [path for name in source.python.packages for path in _modules(name, where, f"{key}.python.packages")]
    elif source.files is not None:
        paths = []
        for pattern in source.files:
            found = _expand(folder, pattern)
            if not found:
                fix = "correct the path; it is relative to the folder of the experiment file"
                raise BadInput(where, f"{key}.files", pattern, f"a file below {folder}", fix)
            for path in found:
                if path.suffix not in (".jsonl", ".txt"):
                    raise BadInput(where, f"{key}.files", str(path), "`.jsonl` or `.txt`", "convert the file")
            paths += found
    else:
        return []
    if not any(path.stat().st_size for path in paths):
        names = ", ".join(str(p) for p in paths[:3])
        raise BadInput(where, f"{key}.files", names, "a corpus holds text, this one is empty", "name files with text")
    return paths


def _expand(folder: Path, pattern: str) -> list[Path]:
    path = folder / pattern
    if path.is_file():
        return [path]
    root = Path(path.anchor)
    return sorted(p for p in root.glob(str(path.absolute().relative_to(root.absolute()))) if p.is_file())


def _modules(package: str, where: object, key: str) -> list[Path]:
    if package == "stdlib":
        roots = [Path(sysconfig.get_path("stdlib"))]
    else:
        try:
            spec = find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            fix = f"install it, or correct the name; `stdlib` is always here (Python {sys.version.split()[0]})"
            raise BadInput(where, key, package, "an importable package", fix)
        if not spec.submodule_search_locations:
            return [Path(str(spec.origin))]
        roots = [Path(p) for p in spec.submodule_search_locations]
    found: list[Path] = []
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - LEFT_OUT)
            found += [Path(folder) / name for name in sorted(names) if name.endswith(".py")]
    return found


def fingerprint(source: Source, paths: list[Path]) -> str:
    """16 hex digits that change when the files or the way of reading them change.

    Files count by path, size and time of change; Python packages by path inside the package, size and Python version.
    """
    how = source.model_dump(mode="json", include={"field", "python", "held_out", "planned_tokens"})
    if source.python is not None:
        listed: list[list[str | int]] = [[path.name, path.stat().st_size] for path in paths]
        return digest([how, sys.version_info[:3], listed])
    return digest([how, [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]])


def read(source: Source, paths: list[Path]) -> Iterator[str]:
    """The documents of a source, in the order of its files; empty ones are left out.

    Raises `BadInput` naming file and line for a JSONL record without text.
    """
    if source.python is not None:
        yield from _read_python(source.python, paths)
        return
    for path in paths:
        yield from (text for text in _read_file(path, source.field) if text.strip())


def _read_file(path: Path, field: str) -> Iterator[str]:
    try:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _text(line, field, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise BadInput(path, "the file", str(error), "text is UTF-8", "convert the file") from None


def _text(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInput(where, "the record", str(error), "one JSON object a line", "mend or remove the line") from None
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise BadInput(where, field, keys, f"the key `{field}` holds the text", "set `field:` of the source") from None
    return str(record[field])


def _read_python(text: PythonText, paths: list[Path]) -> Iterator[str]:
    yield from _topics(text)
    with ProcessPoolExecutor() as pool:  # parsing is all the cost, and a module at a time
        extract = _docstrings if text.part == "docs" else _code
        yield from (document for document in pool.map(extract, paths, chunksize=16) if document)


def _topics(text: PythonText) -> list[str]:
    """The chapters of the language reference that pydoc carries."""
    if text.part != "docs" or "stdlib" not in text.packages:
        return []
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a file for another Python
        return ast.Module(body=[], type_ignores=[])


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(path: Path) -> str:
    found = [ast.get_docstring(node) for node in ast.walk(_tree(path)) if isinstance(node, DOCUMENTED)]
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)


def _code(path: Path) -> str:
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def estimate_bytes(source: Source, paths: list[Path]) -> int:
    """UTF-8 bytes of a source's documents, estimated from a sample of at most 25 files or 1 MiB of each of them."""
    sample = paths[:: max(1, len(paths) // SAMPLE_FILES)]
    size = sum(path.stat().st_size for path in paths)
    if source.python is not None:
        extract = _docstrings if source.python.part == "docs" else _code
        kept = sum(len(extract(path).encode()) for path in sample)
        topics = sum(len(text.encode()) for text in _topics(source.python))
        return topics + round(kept / max(1, sum(path.stat().st_size for path in sample)) * size)
    if all(path.suffix == ".txt" for path in paths):
        return size
    kept = taken = 0
    for path in sample:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.readlines(SAMPLE_BYTES)
        kept += sum(len(_text(line, source.field, str(path)).encode()) for line in lines if line.strip())
        taken += sum(len(line.encode()) for line in lines)
    return round(kept / max(1, taken) * size)
