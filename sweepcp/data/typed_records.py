"""Records of formats with types: Parquet files, and data sets of `datasets` as Arrow tables."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sweepcp.config.source import Source
from sweepcp.config.template import template_keys
from sweepcp.data.problems import RecordProblem
from sweepcp.data.values import make_object, parse_json
from sweepcp.errors import InvalidInput

ROWS_PER_BATCH = 256
BUFFER_BYTES = 1 << 20


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; raise `InvalidInput` if it is none."""
    from pyarrow.parquet import ParquetFile

    try:
        # By default, Arrow reads a row group whole before it yields the first batch.
        return ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None


def parquet_batches(
    file: Any, source: Source, groups: range, rows: int = ROWS_PER_BATCH
) -> Iterator[Any]:
    """Yield some row groups of a Parquet file as record batches of the columns that are needed.

    Raises:
        InvalidInput: The file has none of the columns, or cannot be read.
    """
    columns = _needed_columns(source, file.schema_arrow.names)
    try:
        yield from file.iter_batches(rows, row_groups=list(groups), columns=columns)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None


def table_records(table: Any, source: Source) -> Iterator[dict[str, Any] | RecordProblem]:
    """Yield the rows of an Arrow table or record batch; one that cannot be read is a problem.

    Raises:
        InvalidInput: The table has none of the columns that the source needs.
    """
    table = table.select(_needed_columns(source, table.schema.names))
    inexact = {field.name: field.type for field in table.schema if _is_inexact(field.type)}
    for row in _python_rows(table):
        if inexact and not isinstance(row, RecordProblem):
            yield _exact_row(row, inexact)
        else:
            yield row


def _needed_columns(source: Source, names: list[str]) -> list[str]:
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


def _python_rows(table: Any) -> Iterator[dict[str, Any] | RecordProblem]:
    try:
        yield from table.to_pylist()
    except (ValueError, LookupError, OverflowError):
        # Arrow does not validate text, and dates may be out of Python's range: the row is found.
        for row in range(table.num_rows):
            yield _python_row(table, row)


def _python_row(table: Any, row: int) -> dict[str, Any] | RecordProblem:
    record: dict[str, Any] = {}
    for name in table.schema.names:
        try:
            record[name] = table.column(name)[row].as_py()
        except UnicodeDecodeError as error:
            return RecordProblem(name, str(error), "UTF-8 text", "write the row again as UTF-8")
        except (ValueError, LookupError, OverflowError) as error:
            return RecordProblem(name, str(error), "a value that can be read", "correct the row")
    return record


def _exact_row(row: dict[str, Any], inexact: dict[str, Any]) -> dict[str, Any] | RecordProblem:
    for name, arrow_type in inexact.items():
        try:
            row[name] = _exact(row[name], arrow_type)
        except (ValueError, RecursionError) as error:
            return RecordProblem(name, str(error), "a value that can be read", "correct the row")
    return row


@functools.cache
def _is_inexact(arrow_type: Any) -> bool:
    """Return whether Arrow's Python values of a type differ from those of JSON."""
    import pyarrow as pa

    if pa.types.is_dictionary(arrow_type):
        return _is_inexact(arrow_type.value_type)
    if _is_narrow_float(arrow_type) or _is_json(arrow_type) or pa.types.is_map(arrow_type):
        return True
    inner = [arrow_type.field(number).type for number in range(arrow_type.num_fields)]
    return any(map(_is_inexact, inner))


def _is_narrow_float(arrow_type: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_float16(arrow_type) or pa.types.is_float32(arrow_type))


def _is_json(arrow_type: Any) -> bool:
    """Return whether values are JSON texts, as the feature `Json` of `datasets` stores them."""
    import pyarrow as pa

    return isinstance(arrow_type, pa.JsonType)


def _exact(value: Any, arrow_type: Any) -> Any:
    """Return a Python value of an Arrow type as JSON would hold it.

    A narrow float becomes the Python float with the same shortest decimal: 19.99 in float32 is
    19.989999771118164 as a Python float. Maps become dicts, and the texts of JSON values are
    parsed.

    Raises:
        ValueError: A key of a map occurs twice.
    """
    import pyarrow as pa

    if value is None or not _is_inexact(arrow_type):
        return value
    if _is_narrow_float(arrow_type):
        narrow = np.float16 if pa.types.is_float16(arrow_type) else np.float32
        return float(str(narrow(value)))
    if _is_json(arrow_type):
        return parse_json(value)
    if pa.types.is_dictionary(arrow_type):
        return _exact(value, arrow_type.value_type)
    if pa.types.is_struct(arrow_type):
        return {name: _exact(inner, arrow_type.field(name).type) for name, inner in value.items()}
    if pa.types.is_map(arrow_type):
        return make_object([(name, _exact(inner, arrow_type.item_type)) for name, inner in value])
    return [_exact(inner, arrow_type.value_type) for inner in value]


def _damaged(error: Exception) -> InvalidInput:
    reason = str(error).split("\n")[0]
    fix = "fetch or write the file again"
    return InvalidInput(key="the file", found=reason, rule="a Parquet file", fix=fix)
