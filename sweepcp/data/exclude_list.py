"""The documents of a source that `exclude` drops."""

import functools
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from sweepcp.config.json_lines import read_valid_lines
from sweepcp.config.validation import ConfigModel


class _ExcludedDocument(ConfigModel):
    """A line of an exclude list. Other keys are notes."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """As of `sweepcp.data.documents.Document.id`."""


@functools.cache
def read_exclude_list(path: Path) -> frozenset[str]:
    """Return the ids of an exclude list.

    Raises:
        InvalidInput: The file cannot be read, or a line has no id of a document.
    """
    fix = "write the list again with `sweepcp data check --write`"
    return frozenset(row.id for _, row in read_valid_lines(path, _ExcludedDocument, fix=fix))
