"""Split a JSON array into its elements, in memory of one element."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from sweepcp.data.file_content import CHUNK_BYTES
from sweepcp.errors import InvalidInput

STRING_END = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
"""What is left of a string, up to its closing quote."""
OUTSIDE = re.compile(rb'["{}\[\],]')


class ArrayElement(NamedTuple):
    """An element of an array, which need not be valid JSON."""

    start: int
    """Where it begins in the content."""
    content: bytes | None
    """None if it is longer than the limit."""


def is_array(file: BinaryIO) -> bool:
    """Return whether content is a JSON array, by its first character."""
    while chunk := file.read(CHUNK_BYTES):
        if content := chunk.lstrip():
            return content.startswith(b"[")
    return False


def split_array(file: BinaryIO, limit: int) -> Iterator[ArrayElement]:
    """Yield the elements of the array that a file holds, as they are written.

    An element that is not valid JSON is yielded like others, as long as its quotes and brackets are
    balanced.

    Args:
        file: Content that begins with an array.
        limit: Bytes of an element that are kept; a longer one is yielded without its content.

    Raises:
        InvalidInput: The array does not end, or something follows it. The error names no file.
    """
    splitter = _Splitter(limit)
    while chunk := file.read(CHUNK_BYTES):
        yield from splitter.feed(chunk)
    if not splitter.has_ended:
        raise _not_an_array("the end of the file inside its array", "ends with `]`")


@dataclass
class _Splitter:
    """Finds the ends of elements in chunks of content."""

    limit: int
    depth: int = -1
    """Brackets that are open: -1 before the array, 0 between its elements."""
    in_string: bool = False
    is_escaped: bool = False
    """Whether the next byte follows a backslash."""
    has_ended: bool = False
    read: int = 0
    """Bytes of the chunks before."""
    elements: int = 0
    start: int = 0
    """Where the current element begins."""
    size: int = 0
    pieces: list[bytes] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[ArrayElement]:
        """Yield the elements that end in the next chunk."""
        position = begin = 0
        if self.is_escaped:
            position, self.is_escaped = 1, False
        while not self.has_ended:
            if self.in_string:
                match = STRING_END.match(chunk, position)
            else:
                match = OUTSIDE.search(chunk, position)
            if match is None:
                self._stop_in_string(chunk[position:])
                break
            position = match.end()
            if self.in_string:
                self.in_string = False
                continue
            ends_element = self._enter(match.group())
            if ends_element:
                self._keep(chunk[begin : position - 1])
                yield from self._element()
            if ends_element or (self.depth == 0 and not self.start):
                begin, self.start = position, self.read + position
        rest = chunk[begin:]
        if self.has_ended and rest.strip():
            raise _not_an_array("text after the end of the array", "is all that the file holds")
        if not self.has_ended:
            self._keep(rest)
        self.read += len(chunk)

    def _enter(self, character: bytes) -> bool:
        """Take the next character of the syntax; return whether it ends an element."""
        if character == b'"':
            self.in_string = True
        elif character in b"{[":
            self.depth += 1
        elif character == b",":
            return self.depth == 0
        elif self.depth > 0:
            self.depth -= 1
        elif character == b"]":
            self.has_ended = True
            return True
        else:
            raise _not_an_array("a brace that closes none", "has balanced braces")
        return False

    def _stop_in_string(self, rest: bytes) -> None:
        """Note whether the chunk ends between a backslash and what it escapes."""
        backslashes = len(rest) - len(rest.rstrip(b"\\"))
        self.is_escaped = self.in_string and backslashes % 2 == 1

    def _keep(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= self.limit:
            self.pieces.append(piece)
        else:
            self.pieces.clear()

    def _element(self) -> Iterator[ArrayElement]:
        content = None if self.size > self.limit else b"".join(self.pieces)
        is_blank = content is not None and not content.strip()
        # A blank after a comma is an element that is missing; in `[ ]`, none is.
        if self.elements or not (is_blank and self.has_ended):
            yield ArrayElement(self.start, content)
        self.elements += 1
        self.size = 0
        self.pieces.clear()


def _not_an_array(found: str, rule: str) -> InvalidInput:
    return InvalidInput(
        key="the file",
        found=found,
        rule=f"a JSON array that {rule}",
        fix="fetch or write the file again, or correct the brackets and quotes",
    )
