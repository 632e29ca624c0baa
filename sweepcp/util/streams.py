"""Text in every locale: files are UTF-8, and what a terminal's encoding lacks is replaced."""

import codecs
import io
import locale
import os
import sys
from contextlib import suppress

READABLE = "sweepcp-readable"
"""The error handler of streams, by its name among Python's codecs."""
SUBSTITUTES = {
    "≤": "<=", "≥": ">=", "±": "+-", "×": "x", "·": "*", "•": "*", "−": "-", "–": "-", "—": "-",
    "→": "->", "…": "...", "²": "^2", "√": "sqrt", "“": '"', "”": '"', "‘": "'", "’": "'",
}  # fmt: skip
"""ASCII text for the symbols of messages."""
ASCII_STREAM = "sweepcp_ascii"
"""ASCII by another name: typer writes UTF-8 to streams whose encoding is named `ascii`."""


def read_files_as_utf_8() -> None:
    """Have libraries and child processes read text files as UTF-8.

    The package names the encoding of every file. torch and others do not: under the C locale they
    fail at files of their own.
    """
    os.environ["PYTHONUTF8"] = "1"  # of child processes, such as Ray's workers
    if codecs.lookup(locale.getencoding()).name != "utf-8":
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def make_streams_printable() -> None:
    """Let standard output and error print any text, with `printable` characters.

    Under the C locale, a Latin-1 locale or PYTHONIOENCODING, they otherwise raise for characters
    that the encoding lacks; and in every locale for file names that are not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        # Tests and notebooks replace the streams by objects of other types.
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            encoding = ASCII_STREAM if is_ascii else stream.encoding
            stream.reconfigure(encoding=encoding, errors=READABLE)


def printable(text: str, encoding: str) -> str:
    r"""Return text with substitutes for what an encoding lacks: `<=` for `≤`, `\xe9` for `é`.

    Bytes of file names that are not UTF-8, which Python holds as surrogates, become `\xe9`, too.
    """
    return text.encode(encoding, READABLE).decode(encoding)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(SUBSTITUTES.get(char) or _escape(char) for char in characters), error.end


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that file system decoding could not interpret
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != ASCII_STREAM:
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode,
        ascii_codec.decode,
        ascii_codec.streamreader,
        ascii_codec.streamwriter,
        ascii_codec.incrementalencoder,
        ascii_codec.incrementaldecoder,
        name=ASCII_STREAM,
    )


codecs.register_error(READABLE, _substitute)
codecs.register(_find_codec)
