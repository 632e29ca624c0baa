"""Atomic writes, output folders, the cache folder, and the files that ship with the package."""

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
    """Return the folder of token stores and pretrained bases.

    It is `$SWEEPCP_CACHE`, or `~/.cache/sweepcp`. On a cluster it must be a folder that every node
    sees.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sweepcp"
    return Path(os.environ.get("SWEEPCP_CACHE") or default).expanduser().absolute()


def shipped_folder(kind: str) -> Path:
    """Return the folder of shipped files of a kind, such as `experiments` or `search_spaces`.

    A wheel holds them inside the package, a checkout beside it.
    """
    packaged = PACKAGE / kind
    return packaged if packaged.is_dir() else PACKAGE.parent / kind


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, reading it in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a JSONL file; blank lines are skipped.

    Raises:
        InvalidInput: The file is not UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            file=path,
            key="the file",
            found=str(error),
            rule="UTF-8 text",
            fix="convert the file to UTF-8",
        ) from None
    # JSON strings may hold other characters that `splitlines` takes for ends of lines.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield number, line


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically with indented JSON; NaN and infinities raise `ValueError`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically with UTF-8 text.

    Readers see the old content or the new one, also after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Without it, a crash soon after the rename may leave an empty file under the new name.
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_is_new(out: Path) -> None:
    """Raise `InvalidInput` if the folder that a command is to create exists."""
    if out.exists():
        raise InvalidInput(
            file=out,
            key="--out",
            found="exists",
            rule="a folder that does not exist yet",
            fix="name another folder, or remove this one",
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, and rename it to `out` on success.

    On an exception nothing is left behind.

    Raises:
        InvalidInput: `out` exists or cannot be created.
    """
    check_is_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise InvalidInput(
            file=out,
            key="--out",
            found=str(error),
            rule="a folder that can be created",
            fix=f"name another folder, or make {out.parent} writable",
        ) from None
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
