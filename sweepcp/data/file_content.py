"""The content of a source's files: how they are opened, and what is raised if they are damaged.

`plan`, `data check` and `data build` open and read files in these ways only.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sweepcp.data.formats import file_format
from sweepcp.errors import InvalidInput, located

CHUNK_BYTES = 1 << 20
"""Bytes that are read at a time where no line ends them."""
COMPRESSED_CHUNK = 64 << 10
"""Bytes of a compressed file that are read at a time."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED_STARTS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    # The second is a frame that holds no data: some writers begin a file with one.
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
SHORTEST_HEADER = 4
"""A compressed file of fewer bytes is truncated."""
OTHER_STARTS = {
    b"\xff\xfe": "text in UTF-16 or UTF-32",
    b"\xfe\xff": "text in UTF-16",
    b"\0\0\xfe\xff": "text in UTF-32",
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\xfd7zXZ\0": "xz data",
    b"BZh91AY&SY": "bzip2 data",
    b"PK\x03\x04": "a zip archive",
}
"""How content begins that is no UTF-8 text."""
LONGEST_START = max(map(len, OTHER_STARTS))


def open_content(path: Path) -> BinaryIO:
    """Open the content of a file of text: decompressed, and after its byte order mark.

    Raises:
        InvalidInput: The first bytes are those of another format. The error names no file.
        OSError: The file cannot be opened. Reading raises it, too; see `guard_reading`.
    """
    file: BinaryIO = path.open("rb")
    try:
        compression = file_format(path).compression
        if compression is not None:
            file = _decompressed(file, compression)
        start = _peek(file)
        _check_start(start)
        if start.startswith(BYTE_ORDER_MARK):
            file.read(len(BYTE_ORDER_MARK))
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def guard_reading(path: Path) -> Iterator[None]:
    """Raise `InvalidInput`, which names the file, for anything that keeps it from being read."""
    compression = file_format(path).compression
    with located(path):
        try:
            yield
        except OSError as error:
            kind = f"a {compression} file" if compression else "a file"
            raise unreadable(error, kind) from None


def unreadable(error: Exception, kind: str) -> InvalidInput:
    """Return what to raise if a file cannot be opened, or not be read to its end."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    fix = "fetch or write the file again"
    # Only errors of the system have a number; those of Arrow are about the content.
    if isinstance(error, OSError) and error.errno:
        reason = error.strerror or reason
        fix = "restore the file, or grant read permission"
    rule = f"{kind} that can be read to its end"
    return InvalidInput(key="the file", found=reason, rule=rule, fix=fix)


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; raise `InvalidInput` if it is gone."""
    with guard_reading(path):
        return path.stat().st_size


def read_line(file: BinaryIO, limit: int) -> bytes:
    """Read a line, or `limit + 1` bytes of a longer one."""
    return file.readline(limit + 1)


def skip_line(file: BinaryIO, limit: int) -> int:
    """Read past the next end of line; return the number of bytes read."""
    skipped = 0
    while chunk := read_line(file, limit):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def line_start(path: Path, position: int) -> int:
    """Return where the first line at or after a byte of a text file begins."""
    with open_content(path) as file:
        if position:
            file.seek(position - 1)
            skip_line(file, CHUNK_BYTES)
        return file.tell()


def copy_start(path: Path, target: BinaryIO, limit: int) -> tuple[int, int, int]:
    """Write the beginning of a compressed file's content, about `limit` bytes.

    Args:
        path: The file.
        target: Receives the content.
        limit: Bytes of content after which to stop.

    Returns:
        The number of compressed bytes that were read, of content bytes that were written, and of
        these up to the end of the last line that is complete.
    """
    written = whole_lines = 0
    with path.open("rb") as compressed, _decompressed(compressed, _compression(path)) as content:
        while chunk := content.read(CHUNK_BYTES):
            if b"\n" in chunk:
                whole_lines = written + chunk.rindex(b"\n") + 1
            written += target.write(chunk)
            if written >= limit:
                return _read_bytes(compressed, content, written), written, whole_lines
    return file_size(path), written, written


def _read_bytes(compressed: BinaryIO, content: BinaryIO, decompressed: int) -> int:
    """Return how many bytes of a compressed file have been decompressed."""
    position, size = compressed.tell(), os.fstat(compressed.fileno()).st_size
    if position < size:
        # On average, half of the last chunk has not been decompressed yet.
        return position - COMPRESSED_CHUNK // 2
    rest = sum(map(len, iter(partial(content.read, CHUNK_BYTES), b"")))
    return max(1, size * decompressed // (decompressed + rest))


def _compression(path: Path) -> str:
    compression = file_format(path).compression
    assert compression is not None
    return compression


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    """Return a stream of the content of a compressed file; reading it may raise `OSError`."""
    import pyarrow

    start = _peek(file)
    _check_compression(start, compression)
    stream: BinaryIO = io.BufferedReader(pyarrow.input_stream(file, compression=compression))
    return stream


def _peek(file: BinaryIO) -> bytes:
    start: bytes = file.peek(LONGEST_START)[:LONGEST_START]  # type: ignore[attr-defined]
    return start


def _check_compression(start: bytes, compression: str) -> None:
    """Raise `InvalidInput` if a file does not begin as its compression does."""
    is_truncated = 0 < len(start) < SHORTEST_HEADER
    # How a truncated file ends is for the decompressor to say; of no bytes, it makes no text.
    if is_truncated or COMPRESSED_STARTS[compression].match(start):
        return
    found = "0 bytes"
    if start:
        found = _describe_start(start) or f"data that is not {compression}, by its first bytes"
    raise InvalidInput(
        key="the file",
        found=found,
        rule=f"{compression} data, as the ending of the name says",
        fix="fetch or compress the file again, or correct its ending",
    )


def _check_start(start: bytes) -> None:
    if found := _describe_start(start):
        raise InvalidInput(
            key="the file",
            found=found,
            rule="UTF-8 text",
            fix="convert the file to UTF-8, or give it the ending of its format",
        )


def _describe_start(start: bytes) -> str:
    """Return the format of content that is no UTF-8 text, by its first bytes; empty for others."""
    for mark, name in OTHER_STARTS.items():
        if start.startswith(mark):
            return f"{name}, by its first bytes"
    return ""
