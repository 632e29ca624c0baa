"""Records of formats with types: Parquet files, and data sets of `datasets` as Arrow tables."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.columns import needed_columns
from sweepcp.data.file_content import unreadable
from sweepcp.data.problems import RecordProblem
from sweepcp.data.values import make_object, parse_written_json
from sweepcp.errors import InvalidInput

ROWS_PER_BATCH = 256
BUFFER_BYTES = 1 << 20
PARQUET_FILE = "a Parquet file"
INVALID_TEXT = "Invalid UTF8"
"""What Arrow says of text that is not UTF-8."""
UNREADABLE_VALUES = (ValueError, LookupError, OverflowError, TypeError, NotImplementedError)
"""What Arrow raises for values that Python cannot hold."""


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; raise `InvalidInput` if it is none."""
    from pyarrow.parquet import ParquetFile

    with guard_arrow(PARQUET_FILE):
        # Arrow takes no names that are not UTF-8, but any file. By default, it reads a row group
        # whole before it yields the first batch.
        return ParquetFile(
            path.open("rb"),
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            page_checksum_verification=True,
        )


def parquet_batches(
    file: Any, source: Source, groups: range, rows: int = ROWS_PER_BATCH
) -> Iterator[Any]:
    """Yield some row groups of a Parquet file as record batches of the columns that are needed.

    Raises:
        InvalidInput: The file has none of the columns, or cannot be read.
    """
    with guard_arrow(PARQUET_FILE):
        names = list(file.schema_arrow.names)
    columns = needed_columns(source, names)
    batches = file.iter_batches(rows, row_groups=list(groups), columns=columns)
    yield from guard_tables(batches, PARQUET_FILE)


def guard_tables(tables: Iterable[Any], kind: str) -> Iterator[Any]:
    """Yield tables of Arrow; raise `InvalidInput` for anything that keeps the next from being read.

    Args:
        tables: The tables of a file, or of a data set.
        kind: What holds them, for messages.
    """
    reader = iter(tables)
    while True:
        with guard_arrow(kind):
            table = next(reader, None)
        if table is None:
            return
        yield table


@contextmanager
def guard_arrow(kind: str) -> Iterator[None]:
    """Raise `InvalidInput` for any error of Arrow or `datasets`, which name no set of exceptions.

    Args:
        kind: What is read, for messages.
    """
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        raise unreadable(error, kind) from None


def table_records(table: Any, source: Source) -> Iterator[dict[str, Any] | RecordProblem]:
    """Yield the rows of an Arrow table or record batch; one that cannot be read is a problem.

    Raises:
        InvalidInput: The table has none of the columns that the source needs, or is damaged.
    """
    table = table.select(needed_columns(source, table.schema.names))
    _check_structure(table)
    inexact = {field.name: field.type for field in table.schema if _is_inexact(field.type)}
    for row in _python_rows(table):
        if inexact and not isinstance(row, RecordProblem):
            yield _exact_row(row, inexact)
        else:
            yield row


def _check_structure(table: Any) -> None:
    """Raise `InvalidInput` for offsets out of bounds, which Arrow would follow anywhere."""
    import pyarrow as pa

    for column in table.columns:
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            # Text that is not UTF-8 is a bad record, and found when the row is read.
            if INVALID_TEXT not in str(error):
                raise unreadable(error, "a table") from None


def _python_rows(table: Any) -> Iterator[dict[str, Any] | RecordProblem]:
    rows: list[dict[str, Any]] | None = None
    with suppress(*UNREADABLE_VALUES):
        rows = table.to_pylist()
    if rows is not None:
        yield from rows
        return
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
        except UNREADABLE_VALUES as error:
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
        return parse_written_json(value)
    if pa.types.is_dictionary(arrow_type):
        return _exact(value, arrow_type.value_type)
    if pa.types.is_struct(arrow_type):
        return {name: _exact(inner, arrow_type.field(name).type) for name, inner in value.items()}
    if pa.types.is_map(arrow_type):
        return make_object([(name, _exact(inner, arrow_type.item_type)) for name, inner in value])
    return [_exact(inner, arrow_type.value_type) for inner in value]
