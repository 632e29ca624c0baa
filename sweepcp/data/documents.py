"""From records to documents: what a text is, what is left out and counted, what is refused."""

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sweepcp.config.source import Source
from sweepcp.config.template import template_keys
from sweepcp.data.language import detect_language
from sweepcp.data.records import RecordLocation, RecordProblem, SourceShard, read_records, too_long
from sweepcp.data.rendering import render_record
from sweepcp.data.source_files import ResolvedSource
from sweepcp.errors import InvalidInput

MAX_EXAMPLES = 5


class Document(NamedTuple):
    """A text that counts, and where it stands."""

    text: str
    place: RecordLocation

    @property
    def key(self) -> bytes:
        """SHA-256 of the text, which decides its side; its first 16 hex digits are the document's id."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass
class RecordCounts:
    """What became of the records of a source or a part of it."""

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason → documents that filters left out."""
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    """The first bad records, with their places."""
    used_keys: Counter[str] = field(default_factory=Counter)
    """Template key → records that have it."""

    def add(self, other: "RecordCounts") -> None:
        self.records += other.records
        self.bad += other.bad
        self.left_out.update(other.left_out)
        self.used_keys.update(other.used_keys)
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]


def read_documents(
    source: Source, found: ResolvedSource, part: SourceShard, tally: RecordCounts
) -> Iterator[Document]:
    """The documents of a part, in order. What is left out, and why, is counted in `tally`.

    Raises `BadInput` with file and line for the first unusable record, unless the source allows some.
    """
    excluded = _excluded_ids(found.exclude) if found.exclude else frozenset()
    for place, content in read_records(source, part):
        tally.records += 1
        text = _record_text(source, content, tally)
        if isinstance(text, RecordProblem):
            if not source.bad_records:
                fix = f"{text.fix}; or set `bad_records: 0.001` to skip and count up to 0.1 % of the records"
                raise InvalidInput(
                    file=place, key=text.key, found=text.found, rule=text.rule, fix=fix
                )
            tally.bad += 1
            if len(tally.examples) < MAX_EXAMPLES:
                tally.examples.append(f"{place}: {text.key}: {text.found} ({text.rule})")
            continue
        document = Document(text, place)
        reason = _exclusion_reason(source, text) or (
            "excluded" if excluded and document.key.hex()[:16] in excluded else None
        )
        if reason:
            tally.left_out[reason] += 1
        else:
            yield document


def check_bad_records(source: Source, tally: RecordCounts) -> None:
    """Raise `BadInput` when more of a source's records are unusable than it allows."""
    if tally.bad > source.bad_records * tally.records:
        key = f"sources.{source.name}.bad_records"
        value = f"{tally.bad:,} of {tally.records:,} records cannot be used: {'; '.join(tally.examples)}"
        raise InvalidInput(
            file=source.name,
            key=key,
            found=value,
            rule=f"at most {source.bad_records:.3%}",
            fix="mend the files, or raise it",
        )


def _record_text(source: Source, content: Any, tally: RecordCounts) -> str | RecordProblem:
    """The text of a record, or why it has none."""
    if isinstance(content, RecordProblem):
        return content
    text = content
    if isinstance(content, dict) and source.template is not None:
        text = render_record(source.template, content)
        tally.used_keys.update(
            {
                key: int(bool(render_record(f"{{{key}}}", content)))
                for key in template_keys(source.template)
            }
        )
        if not text:
            keys = ", ".join(map(str, content))
            return RecordProblem(
                "template", keys, "a record has one of the template's keys", "correct the template"
            )
    elif not isinstance(content, str):
        text = content.get(source.field) if isinstance(content, dict) else None
        if not isinstance(text, str):
            keys = (
                ", ".join(map(str, content))
                if isinstance(content, dict)
                else type(content).__name__
            )
            rule = f"the key `{source.field}` holds the text"
            return RecordProblem(
                source.field, keys, rule, "set `field:` or `template:` of the source"
            )
    if "\0" in text:
        return RecordProblem(
            "the text", "a NUL byte", "text has none; binary data has", "remove it"
        )
    try:
        size = len(text) if len(text) > source.max_document_bytes else len(text.encode())
    except UnicodeEncodeError:
        return RecordProblem(
            "the text",
            "half of a surrogate pair",
            "text can be written as UTF-8",
            "write the text anew",
        )
    return too_long(f"{size:,} bytes", source) if size > source.max_document_bytes else text


def _exclusion_reason(source: Source, text: str) -> str | None:
    """Why the filters of the source leave a text out, if they do."""
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
    if filters.languages and (language := detect_language(text)) not in filters.languages:
        return f"language {language}"
    return None


@functools.cache
def _excluded_ids(path: Path) -> frozenset[str]:
    ids = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            ids.add(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError):
            rule = 'each line is JSON with an "id", as `sweepcp data check --write` writes it'
            raise InvalidInput(
                file=f"{path}:{number}",
                key="exclude",
                found=line,
                rule=rule,
                fix="write the file anew",
            ) from None
    return frozenset(ids)
