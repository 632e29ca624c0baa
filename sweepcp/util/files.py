"""Atomic writes, output folders, the cache folder, and the files that ship with the package."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.util.paths import check_new_folder, check_output_folder, user_path
from sweepcp.util.temporary import remove_abandoned, temporary_file, temporary_folder

PACKAGE = Path(__file__).parents[1]
UMASK = os.umask(0o077)
"""Permissions that new files are not to have. They can be read only by setting them."""
os.umask(UMASK)


def cache_dir() -> Path:
    """Return the folder of token stores, pretrained bases and scores of bases.

    It is `$SWEEPCP_CACHE`, or `~/.cache/sweepcp`. On a cluster it must be a folder that every node
    sees.
    """
    default = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/sweepcp"
    name = os.environ.get("SWEEPCP_CACHE") or default
    try:
        return user_path(name, folder=Path()).absolute()
    except InvalidInput as error:
        raise InvalidInput(
            file="the environment",
            key="SWEEPCP_CACHE",
            found=name,
            rule=error.rule,
            fix="set SWEEPCP_CACHE to a folder that can be written",
        ) from None


def check_cache() -> None:
    """Raise `InvalidInput` if nothing can be written to the cache folder, before work begins."""
    check_output_folder(cache_dir(), key="SWEEPCP_CACHE")


def clean_cache() -> None:
    """Remove temporary files that killed processes have left in the cache folder.

    Parts of token stores are kept: the next build uses them.
    """
    entries = [*cache_dir().glob("*"), *cache_dir().glob("*/*")]
    for folder in [path for path in entries if path.is_dir()]:
        remove_abandoned(folder)


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


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically with indented JSON; NaN and infinities raise `ValueError`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically with UTF-8 text.

    Readers see the old content or the new one, also after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_errors(path), temporary_file(path) as (handle, temporary):
        with open(handle, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        # Without it, a crash soon after the rename may leave an empty file under the new name.
        os.fsync(handle)
        # Temporary files are private, also where the user's umask is not.
        temporary.chmod(0o666 & ~UMASK)
        temporary.replace(path)


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Name `path` in an `OSError` raised inside that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, and rename it to `out` on success.

    On an exception nothing is left behind.

    Raises:
        InvalidInput: `out` exists or cannot be created.
    """
    check_new_folder(out, key="--out")
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_folder(out.parent, out.name))
        except OSError as error:
            raise InvalidInput(
                file=out,
                key="--out",
                found=str(error),
                rule="a folder that can be created",
                fix=f"name another folder, or make {out.parent} writable",
            ) from None
        temporary.chmod(0o777 & ~UMASK)
        yield temporary
        temporary.rename(out)
