"""Load data sets of the `datasets` library: saved on disk, or streamed from the hub."""

import functools
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.errors import InvalidInput, located


@functools.cache
def load_saved(source: Source, folder: Path) -> Any:
    """Load the data set that `save_to_disk` wrote into a folder, memory-mapped.

    Raises:
        InvalidInput: The folder holds no data set, or not the split that the source names.
    """
    from datasets import DatasetDict, load_from_disk

    assert source.saved is not None
    split = source.saved.split
    with located(folder, f"sources.{source.name}"):
        try:
            content = load_from_disk(str(folder))
        # Files that are damaged raise any exception of the library's parsers.
        except Exception as error:
            reason = _first_line(error)
            rule = "a folder that `save_to_disk` of datasets wrote"
            fix = "name such a folder"
            raise InvalidInput(key="saved", found=reason, rule=rule, fix=fix) from None
        if not isinstance(content, DatasetDict):
            return content
        if split not in content:
            rule = f"the folder holds several splits: {', '.join(map(str, content))}"
            fix = "set it to one of them"
            raise InvalidInput(key="saved.split", found=split, rule=rule, fix=fix)
        return content[split]


@functools.cache
def load_hub(source: Source) -> Any:
    """Open a data set of the hub as a stream.

    Raises:
        InvalidInput: The data set, or its split, does not exist or cannot be reached.
    """
    from datasets import load_dataset

    assert source.hub is not None
    hub = source.hub
    try:
        return load_dataset(
            hub.id, hub.subset, revision=hub.revision, split=hub.split, streaming=True
        )
    except Exception as error:
        raise InvalidInput(
            file=source.name,
            key=f"sources.{source.name}.hub",
            found=hub.id,
            rule=f"a data set of the hub with split {hub.split} ({_first_line(error)})",
            fix="correct id, revision, subset or split; this machine must reach the hub",
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
