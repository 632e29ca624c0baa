"""The formats of files that a source can name, told by the endings of their names."""

from pathlib import Path
from typing import NamedTuple

PARQUET = ".parquet"
TEXT_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
"""Kinds of text, which may be compressed."""
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = (*(kind + packed for kind in TEXT_KINDS for packed in ("", *COMPRESSION)), PARQUET)
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class FileFormat(NamedTuple):
    """What a file holds."""

    kind: str
    """One of `TEXT_KINDS`, or `PARQUET`; empty if the ending is none of `SUFFIXES`."""
    compression: str | None = None
    """`gzip` or `zstd`."""


def file_suffix(path: Path) -> str:
    """Return the ending that decides how a file is read, empty if there is none."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def file_format(path: Path) -> FileFormat:
    """Return the format that the ending of a file's name states."""
    kind, dot, packed = file_suffix(path)[1:].partition(".")
    return FileFormat(f".{kind}" if kind else "", COMPRESSION[dot + packed] if packed else None)
