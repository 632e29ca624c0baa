"""Temporary files and folders that a killed process leaves behind, and their removal.

Each is locked while it is in use. One that nobody has locked is left of a process that was killed,
and the next one that works at the same place removes it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from sweepcp.util.locks import is_abandoned, lock


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Yield an open temporary file beside `path`; it is removed unless it was renamed."""
    while True:
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path.name))
        except OSError as error:
            error.filename = str(path)
            raise
        temporary = Path(name)
        if _keep(handle, temporary):
            break
        os.close(handle)
    try:
        yield handle, temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder in `parent`; it is removed unless it was renamed.

    Those of the same name that killed processes have left are removed first.
    """
    remove_abandoned(parent, name)
    while True:
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=_prefix(name)))
        handle = os.open(temporary, os.O_RDONLY)
        if _keep(handle, temporary):
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def remove_abandoned(parent: Path, name: str | None = None) -> None:
    """Remove temporary files and folders in `parent` that killed processes have left.

    Args:
        parent: The folder. Those below it are not looked into.
        name: Only those of this name.
    """
    pattern = f"{escape(_prefix(name)) if name else '.*.tmp-'}{'[a-z0-9_]' * 8}"
    for path in parent.glob(pattern):
        if is_abandoned(path):
            # Another process may be doing the same.
            with suppress(OSError):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _prefix(name: str) -> str:
    return f".{name}.tmp-"


def _keep(handle: int, path: Path) -> bool:
    """Lock a new file; return False if it was taken for abandoned before, and removed."""
    lock(handle)
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
