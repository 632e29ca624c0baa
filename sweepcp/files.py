"""Files that the program writes: canonical JSON, atomic replacement, the cache folder, what ships in the wheel."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


def cache_dir() -> Path:
    """Where token stores and pretrained bases are kept: `$SWEEPCP_CACHE`, or `~/.cache/sweepcp`.

    On a cluster it must be a folder that every node sees.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sweepcp"
    return Path(os.environ.get("SWEEPCP_CACHE") or default).expanduser().absolute()


def shipped(kind: str) -> Path:
    """The folder of shipped `experiments` or `search_spaces`: in the wheel, or beside the package in a checkout."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities raise `ValueError`."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


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
