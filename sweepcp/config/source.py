"""The `sources` section of an experiment: corpora and how their records become documents."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from sweepcp.config.template import Template
from sweepcp.config.types import (
    COMMIT,
    Fraction,
    HubId,
    PositiveFloat,
    PositiveInt,
    Role,
    SafeName,
)
from sweepcp.config.validation import ConfigModel


class Filters(ConfigModel):
    """Which documents of a source are kept. The others are counted by reason."""

    min_chars: PositiveInt | None = None
    """Shorter documents are dropped."""
    max_chars: PositiveInt | None = None
    """Longer documents are dropped."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Keep documents that are detected to be in one of these (ISO 639-1 codes)."""
    keep: str | None = None
    """Keep documents that this regular expression matches somewhere."""
    drop: str | None = None
    """Drop documents that this regular expression matches somewhere."""

    @field_validator("keep", "drop")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"not a regular expression: {error}; fix: correct the pattern"
            ) from None
        return pattern


class HubDataset(ConfigModel):
    """A data set of the hub, pinned to a commit, read as a stream."""

    id: HubId
    """The data set's id, such as `allenai/c4`."""
    revision: Annotated[str, Field(pattern=f"^{COMMIT.pattern}$")]
    """The 40 hex digits of a commit: a branch may change between two builds."""
    subset: str | None = None
    """Its configuration, where it has several."""
    split: str = "train"
    """The split that is read."""


class SavedDataset(ConfigModel):
    """A folder that `datasets.Dataset.save_to_disk` wrote, relative to the experiment file."""

    path: str
    """The folder."""
    split: str | None = None
    """For a folder that holds several splits."""


class PythonText(ConfigModel):
    """Text of installed Python packages: one document per module, without test packages.

    `docs` is the modules' docstrings (and the language reference that pydoc carries, for `stdlib`),
    `code` the same modules' code without docstrings and comments.
    """

    part: Literal["docs", "code"]
    """The documentation or the code."""
    packages: tuple[str, ...] = Field(default=("stdlib",), min_length=1)
    """`stdlib`, or import names of installed packages."""


class Source(ConfigModel):
    """One corpus: its role, its language, and where it comes from.

    It has exactly one of `files`, `saved`, `hub`, `python` and `planned_tokens`.
    """

    name: SafeName
    """Names the source in recipes, tables and messages."""
    role: Role
    """What it represents: the domain, or general text that must not be forgotten."""
    language: str = "en"
    """A language code; sources that are not `en` make up the non-English share."""
    weight: PositiveFloat | None = None
    """Its part of the role's share, relative to the other sources of the role; by default its
    training tokens."""

    files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Files, folders or globs, relative to the experiment file: .jsonl, .json (one array, or
    JSONL), .csv, .tsv and .txt, plain, .gz or .zst, and .parquet."""
    saved: SavedDataset | None = None
    """A data set that `datasets` saved."""
    hub: HubDataset | None = None
    """A data set of the hub."""
    python: PythonText | None = None
    """Text of installed Python packages."""
    planned_tokens: PositiveInt | None = None
    """Tokens of a corpus that is not on this machine: enough for `plan`, not for `search`."""

    field: str = "text"
    """The key of a record that holds the text."""
    template: Template | None = None
    """In place of `field`: lines of text with `{keys}` of the record. A line whose key is missing
    or empty is dropped."""
    unit: Literal["file", "paragraph", "line"] = "file"
    """What a document is in a .txt file; paragraphs are separated by empty lines."""

    filters: Filters = Filters()
    """Which documents are kept."""
    exclude: str | None = None
    """A JSONL file with the `id` of each document to drop, relative to the experiment file; see
    `data check`."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """`drop` drops documents that resemble an earlier one of the source; `keep` saves that work
    for clean corpora."""
    max_document_bytes: PositiveInt = 4 << 20
    """A longer document is a bad record: it needs much memory, and is rarely a single document."""
    bad_records: Fraction = 0.0
    """Share of the records that may be unusable: they are skipped and counted. Above it, the source
    is refused."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents that is never trained on, drawn by a hash of their text."""
    held_out_files: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """In place of `held_out`: files that are held out completely; nothing of `files` is."""
    max_epochs: PositiveFloat = 4.0
    """The number of epochs above which `beyond_max_epochs` applies."""
    beyond_max_epochs: Literal["warn", "refuse"] = "warn"
    """What happens above it."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        origins = ("files", "saved", "hub", "python", "planned_tokens")
        if sum(getattr(self, name) is not None for name in origins) != 1:
            raise ValueError(
                f"a source has exactly one of {', '.join(origins[:-1])} and {origins[-1]}; "
                "fix: keep one, such as `files: [corpus.jsonl]`"
            )
        if self.template is not None and "field" in self.model_fields_set:
            raise ValueError(
                "a record becomes text by its field or by a template; fix: remove one of the two"
            )
        if self.template is not None and self.python is not None:
            raise ValueError("modules have no fields for a template; fix: remove template")
        if self.held_out_files is None:
            return self
        if self.files is None or "held_out" in self.model_fields_set:
            raise ValueError(
                "held_out_files needs files, and takes the place of held_out; "
                "fix: add `files`, or remove held_out or held_out_files"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_replaced_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the default of what another field takes the place of, as it may not be set."""
        content: dict[str, Any] = handler(self)
        if self.template is not None:
            content.pop("field", None)
        if self.held_out_files is not None:
            content.pop("held_out", None)
        return content
