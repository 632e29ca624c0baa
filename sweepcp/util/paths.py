"""Paths that people write: what they mean, and whether a command can write to them."""

import errno
import os
import sys
import tempfile
from pathlib import Path

from sweepcp.errors import InvalidInput

UNUSABLE = {
    errno.ENAMETOOLONG: "a shorter path; no file can have one of this length",
    errno.ELOOP: "a link that leads to a file; this one leads nowhere, or to itself",
    errno.EACCES: "a path below folders that you may open",
    errno.EPERM: "a path below folders that you may open",
}
"""Errors of a look-up that only another path can mend, as rules."""
CORRECT_PATH = "correct the path"


def user_path(name: str, *, folder: Path) -> Path:
    """Return the path that a person wrote, whether or not something is there.

    Args:
        name: The path as it was written. `~` and `~user` in front are home folders; a name such as
            `~notes.jsonl` that no user has is a plain name.
        folder: The folder that a relative path starts from.

    Raises:
        InvalidInput: No file can have this path, or it may not be looked up. The error names no
            file.
    """
    if not name:
        raise InvalidInput(found=name, rule="a path; this is empty text", fix=CORRECT_PATH)
    if "\0" in name:
        rule = "a path, which holds no character NUL"
        raise InvalidInput(found=name, rule=rule, fix=CORRECT_PATH)
    path = folder / _expand_home(name)
    _check_encoding(name, path)
    try:
        path.stat()
    except OSError as error:
        if error.errno in UNUSABLE:
            rule = UNUSABLE[error.errno]
            raise InvalidInput(found=name, rule=rule, fix=CORRECT_PATH) from None
    return path


def check_output_file(path: Path, *, key: str) -> None:
    """Check that a file can be written, or replaced, before the work on its content begins.

    Args:
        path: The file. Folders above it that are missing can be created.
        key: The option that names it, for messages.

    Raises:
        InvalidInput: A folder or a device has this path, or it cannot be written.
    """
    if os.path.lexists(path) and not path.is_file():
        found = describe_kind(path)
        fix = "name another file"
        raise InvalidInput(file=path, key=key, found=found, rule="a file to write", fix=fix)
    _check_writable(path.parent, path=path, key=key)


def check_output_folder(path: Path, *, key: str) -> None:
    """Check that a folder can be created, or written to, before the work on its content begins.

    Raises:
        InvalidInput: A file has this path, or the folder cannot be written to.
    """
    if os.path.lexists(path) and not path.is_dir():
        found = describe_kind(path)
        fix = "name another folder"
        raise InvalidInput(file=path, key=key, found=found, rule="a folder to write to", fix=fix)
    _check_writable(path, path=path, key=key)


def check_new_folder(path: Path, *, key: str) -> None:
    """Check that a folder does not exist and can be created.

    Raises:
        InvalidInput: Something has this path, or a folder cannot be created there.
    """
    if os.path.lexists(path):
        raise InvalidInput(
            file=path,
            key=key,
            found=f"{describe_kind(path)} that exists",
            rule="a folder that does not exist yet",
            fix="name another folder, or remove this one",
        )
    _check_writable(path.parent, path=path, key=key)


def check_input_file(path: Path) -> None:
    """Check that a path is a regular file, which can be read twice and ends.

    Raises:
        InvalidInput: It is missing, a folder, a device, a named pipe or a socket. The error names
            no file.
    """
    if not path.is_file():
        fix = "name a file" if os.path.lexists(path) else CORRECT_PATH
        raise InvalidInput(found=describe_kind(path), rule="a file", fix=fix)


def read_input_file(path: Path, size: int = -1) -> bytes:
    """Return the first `size` bytes of a file that a person wrote; by default all of it.

    Raises:
        InvalidInput: As of `check_input_file`, or the file cannot be read.
    """
    check_input_file(path)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        rule, fix = "a file that can be read", "correct its permissions"
        raise InvalidInput(found=error.strerror, rule=rule, fix=fix) from None


def describe_kind(path: Path) -> str:
    """Return what has a path, as messages say it: `a folder`, `a named pipe`, `nothing`."""
    kinds = {
        "a file": path.is_file,
        "a folder": path.is_dir,
        "a named pipe": path.is_fifo,
        "a socket": path.is_socket,
        "a device": lambda: path.is_char_device() or path.is_block_device(),
        "a link that leads nowhere, or to itself": path.is_symlink,
    }
    return next((kind for kind, is_kind in kinds.items() if is_kind()), "nothing")


def _expand_home(name: str) -> str:
    # `Path` would drop the `./` that tells a file `./~x` from a home folder, and `Path.expanduser`
    # fails for a plain name such as `~x.jsonl`.
    expanded = os.path.expanduser(name)  # noqa: PTH111
    is_home = name == "~" or (name.startswith("~") and os.sep in name)
    if expanded != name or not is_home:
        return expanded
    home = name.partition(os.sep)[0]
    raise InvalidInput(
        found=name,
        rule=f"a path; {home} is no home folder on this machine",
        fix=f"write the folder in full, or `./{name}` if it is named {home}",
    )


def _check_encoding(name: str, path: Path) -> None:
    """Refuse what cannot be a name of a file here, and what JSON could not record."""
    try:
        os.fsencode(path)
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        rule = f"a path in the encoding of file names and in UTF-8; {character!r} is not"
        fix = "rename the file or folder"
        if sys.getfilesystemencoding() != "utf-8":
            fix += ", or set LC_ALL=C.UTF-8, in which every name can be written"
        raise InvalidInput(found=name, rule=rule, fix=fix) from None


def _check_writable(folder: Path, *, path: Path, key: str) -> None:
    """Check that entries can be created in a folder, or in the nearest one above that exists."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        # Permissions alone do not tell: not for root, and not of file systems such as /proc.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".sweepcp."):
            pass
    except OSError as error:
        raise InvalidInput(
            file=path,
            key=key,
            found=error.strerror or str(error),
            rule="a path where files can be created",
            fix=f"name another path, or make {folder} writable",
        ) from None
