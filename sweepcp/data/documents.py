"""From records to documents: their text, what is left out and counted, and what is refused."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from sweepcp.config.source import Source
from sweepcp.data.exclude_list import read_exclude_list
from sweepcp.data.language import detect_language
from sweepcp.data.problems import RecordProblem, too_long
from sweepcp.data.records import read_records
from sweepcp.data.rendering import render_template, template_values
from sweepcp.data.shards import LocatedRecord, RecordLocation, SourceShard
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.values import WrittenNumber, decode_utf8, describe_kind, look_up
from sweepcp.errors import SHOWN_CHARACTERS, InvalidInput
from sweepcp.util.records import Record, read_record

MAX_EXAMPLES = 5
"""Bad records whose locations and problems are kept."""
PROBED_RECORDS = 10_000
"""Records after a bad one that are read to propose a value of `bad_records`."""
MOSTLY_BAD = "correct the files, or the `field` or `template` of the source"


class Document(NamedTuple):
    """The text of a record that passed the filters, and where the record is."""

    text: str
    location: RecordLocation

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the text, which decides its split."""
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256."""
        return self.sha256.hex()[:16]


class CountsRecord(Record):
    """The file of `RecordCounts`."""

    records: int
    left_out: dict[str, int]
    bad: int
    examples: list[str]
    used_keys: dict[str, int]


@dataclass
class RecordCounts:
    """What became of the records of a source or of a shard of it."""

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → documents left out by the filters."""
    bad: int = 0
    """Records that cannot be used."""
    examples: list[str] = field(default_factory=list)
    """The first bad records, with their locations."""
    used_keys: Counter[str] = field(default_factory=Counter)
    """Key of the template → records that have it."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the counts of a shard, whose `vars` were written as JSON.

        Raises:
            InvalidInput: The file is corrupt.
        """
        record = read_record(CountsRecord, path, fix=f"remove {path.parent}, which is built again")
        counters = {name: Counter(getattr(record, name)) for name in ("left_out", "used_keys")}
        return cls(**record.model_dump() | counters)

    def add(self, other: "RecordCounts") -> None:
        """Add the counts of another shard, whose records follow."""
        self.records += other.records
        self.bad += other.bad
        self.left_out.update(other.left_out)
        self.used_keys.update(other.used_keys)
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]


def read_documents(
    source: Source, files: ResolvedSource, shard: SourceShard, counts: RecordCounts
) -> Iterator[Document]:
    """Yield the documents of a shard in order; see `make_documents`."""
    return make_documents(source, files, read_records(source, shard), counts)


def make_documents(
    source: Source, files: ResolvedSource, records: Iterable[LocatedRecord], counts: RecordCounts
) -> Iterator[Document]:
    """Yield the documents of some records in order.

    Args:
        source: How records become documents, and which are left out.
        files: The files of the source.
        records: Records of the source.
        counts: Receives the number of records read, and what was left out and why.

    Raises:
        InvalidInput: A record cannot be used, and the source allows no bad records. The error names
            the file and line (or row).
    """
    excluded = frozenset() if files.exclude is None else read_exclude_list(files.exclude)
    records = iter(records)
    for location, content in records:
        counts.records += 1
        text = _record_text(source, content, counts)
        if isinstance(text, RecordProblem):
            if not source.bad_records:
                proposed = _propose_share(*_probe_records(source, records, counts))
                raise _bad_record(location, text, proposed)
            counts.bad += 1
            if len(counts.examples) < MAX_EXAMPLES:
                counts.examples.append(_describe(location, text))
            continue
        document = Document(text, location)
        reason = _exclusion_reason(source, document, excluded)
        if reason is None:
            yield document
        else:
            counts.left_out[reason] += 1


def check_bad_records(source: Source, counts: RecordCounts) -> None:
    """Raise `InvalidInput` if more of a source's records cannot be used than it allows."""
    if counts.bad > source.bad_records * counts.records:
        examples = "; ".join(counts.examples)
        proposed = _propose_share(counts.bad, counts.records)
        fix = f"correct the files, or set `bad_records: {proposed:f}`" if proposed else MOSTLY_BAD
        raise InvalidInput(
            file=source.name,
            key=f"sources.{source.name}.bad_records",
            found=f"{counts.bad:,} of {counts.records:,} records cannot be used: {examples}",
            rule=f"at most {source.bad_records:.3%} of the records",
            fix=fix,
        )


def _probe_records(
    source: Source, following: Iterator[LocatedRecord], counts: RecordCounts
) -> tuple[int, int]:
    """Return the bad records and all records, up to the first bad one and some way after it."""
    bad, total = 1, counts.records
    # The bad record is what is to be reported, also if more is wrong further on.
    with suppress(InvalidInput):
        for _, content in islice(following, PROBED_RECORDS):
            total += 1
            bad += isinstance(_record_text(source, content, RecordCounts()), RecordProblem)
    return bad, total


def _propose_share(bad: int, total: int) -> Decimal | None:
    """Return a share of one digit above that of bad records; None if most records are bad."""
    if 2 * bad > total:
        return None
    places = 1
    while bad * 10**places < total:
        places += 1
    return Decimal(bad * 10**places // total + 1).scaleb(-places).normalize()


def _bad_record(
    location: RecordLocation, problem: RecordProblem, proposed: Decimal | None
) -> InvalidInput:
    fix = problem.fix
    if proposed is not None:
        fix += f"; or set `bad_records: {proposed:f}` to skip and count up to that share of records"
    return InvalidInput(
        file=location, key=problem.key, found=problem.found, rule=problem.rule, fix=fix
    )


def _describe(location: RecordLocation, problem: RecordProblem) -> str:
    """Return a bad record as a line of text; what was found may hold half a surrogate pair."""
    found = problem.found[:SHOWN_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return f"{location}: {problem.key}: {found} ({problem.rule})"


def _record_text(source: Source, content: Any, counts: RecordCounts) -> str | RecordProblem:
    """Return the text of a record, or why it has none."""
    if isinstance(content, RecordProblem | str):
        text = content
    elif isinstance(content, dict) and source.template is not None:
        text = _render_record(source.template, content, counts)
    else:
        text = _read_field(source.field, content)
    return text if isinstance(text, RecordProblem) else _check_text(source, text)


def _render_record(
    template: str, content: dict[str, Any], counts: RecordCounts
) -> str | RecordProblem:
    try:
        values = template_values(template, content)
    except InvalidInput as error:
        return RecordProblem.from_error(error)
    for key, value in values.items():
        counts.used_keys[key] += bool(value)
    text = render_template(template, values)
    if not text:
        return RecordProblem(
            key="template",
            found=", ".join(map(str, content)),
            rule="a record has a value of one of the template's keys",
            fix="correct the template",
        )
    return text


def _read_field(name: str, content: Any) -> str | RecordProblem:
    if not isinstance(content, dict):
        return _no_text(name, describe_kind(content))
    value = look_up(content, name)
    if isinstance(value, str) and not isinstance(value, WrittenNumber):
        return value
    if isinstance(value, bytes):
        try:
            return decode_utf8(value)
        except InvalidInput as error:
            return RecordProblem.from_error(error, name)
    if value is None and name not in content:
        return _no_text(name, ", ".join(map(str, content)))
    return _no_text(name, f"`{name}` is {describe_kind(value)}")


def _no_text(name: str, found: str) -> RecordProblem:
    return RecordProblem(
        key=name,
        found=found,
        rule=f"the key `{name}` holds the text",
        fix="set `field:` or `template:` of the source",
    )


def _check_text(source: Source, text: str) -> str | RecordProblem:
    if "\0" in text:
        return RecordProblem(
            key="the text",
            found="a NUL byte",
            rule="text without NUL bytes, which occur in binary data",
            fix="remove it",
        )
    # A text has at least as many bytes as characters, so a huge one need not be encoded.
    if len(text) > source.max_document_bytes:
        return too_long(f"{len(text):,} bytes", source)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return RecordProblem(
            key="the text",
            found="half of a surrogate pair",
            rule="text that can be encoded as UTF-8",
            fix="write the record again, with its text as UTF-8",
        )
    if size > source.max_document_bytes:
        return too_long(f"{size:,} bytes", source)
    return text


def _exclusion_reason(source: Source, document: Document, excluded: frozenset[str]) -> str | None:
    """Return why a document is left out; None if it is not."""
    reason = _filter_reason(source, document.text)
    if reason is None and excluded and document.id in excluded:
        return "excluded"
    return reason


def _filter_reason(source: Source, text: str) -> str | None:
    filters = source.filters
    if not text.strip():
        return "empty"
    if filters.min_chars and len(text) < filters.min_chars:
        return "min_chars"
    if filters.max_chars and len(text) > filters.max_chars:
        return "max_chars"
    if filters.keep and not re.search(filters.keep, text):
        return "keep"
    if filters.drop and re.search(filters.drop, text):
        return "drop"
    if filters.languages:
        language = detect_language(text)
        if language not in filters.languages:
            return f"language {language}"
    return None
