"""What makes a record unusable."""

from typing import NamedTuple

from sweepcp.config.source import Source
from sweepcp.errors import InvalidInput


class RecordProblem(NamedTuple):
    """Why a record cannot be used, and what its owner can do; the fields of `InvalidInput`."""

    key: str
    found: str
    rule: str
    fix: str

    @classmethod
    def from_error(cls, error: InvalidInput, key: str = "") -> "RecordProblem":
        """Return the problem that a check of a value raised; `key` is for one that names none."""
        return cls(error.key or key, str(error.found), error.rule, error.fix)


def too_long(found: str, source: Source) -> RecordProblem:
    """Return the problem of a document or line longer than the source's `max_document_bytes`."""
    return RecordProblem(
        key="the text",
        found=found,
        rule=f"at most {source.max_document_bytes:,} bytes per document (max_document_bytes)",
        fix="split it into documents (`unit: paragraph` for .txt), or raise max_document_bytes",
    )
