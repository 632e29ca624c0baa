"""The columns of a table that a source reads."""

from sweepcp.config.source import Source
from sweepcp.config.template import template_keys
from sweepcp.errors import InvalidInput


def needed_columns(source: Source, names: list[str]) -> list[str]:
    """Return the columns that a source's field or template reads."""
    keys = (source.field,) if source.template is None else template_keys(source.template)
    # A dotted key is the name of a column, or leads into a column of that beginning.
    columns = [
        name for name in names if any(key == name or key.startswith(f"{name}.") for key in keys)
    ]
    if not columns:
        raise InvalidInput(
            key="the columns",
            found=", ".join(names),
            rule=f"one of {', '.join(sorted(keys))}",
            fix="set `field:` or `template:` of the source",
        )
    if len(set(columns)) < len(columns):
        raise InvalidInput(
            key="the columns",
            found=", ".join(columns),
            rule="columns with names of their own",
            fix="rename one of the columns of the same name",
        )
    return columns
