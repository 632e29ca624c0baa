"""Files that the program writes: canonical JSON, atomic replacement, the cache folder, what ships in the wheel."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput

PACKAGE = Path(__file__).parents[1]


def cache_dir() -> Path:
    """Where token stores and pretrained bases are kept: `$SWEEPCP_CACHE`, or `~/.cache/sweepcp`.

    On a cluster it must be a folder that every node sees.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sweepcp"
    return Path(os.environ.get("SWEEPCP_CACHE") or default).expanduser().absolute()


def shipped_folder(kind: str) -> Path:
    """The folder of shipped `experiments` or `search_spaces`: in the wheel, or beside the package in a checkout."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically: readers see the old file or the new one, also after a crash."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically with UTF-8 text, flushed to the disk before the rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_is_new(out: Path) -> None:
    """Raise `BadInput` if the folder that a command is to make is there."""
    if out.exists():
        raise InvalidInput(
            file=out,
            key="--out",
            found="exists",
            rule="a folder that does not exist yet",
            fix="name another, or remove it",
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` at the end, or nothing when that is not reached.

    Raises `BadInput` when `out` exists or cannot be made.
    """
    check_is_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise InvalidInput(
            file=out,
            key="--out",
            found=str(error),
            rule="a folder that can be made",
            fix="name another, or check its rights",
        ) from None
    try:
        work.chmod(0o755)
        yield work
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
