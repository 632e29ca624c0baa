"""The files of a source on this machine, and a fingerprint of their content."""

import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.data.exclude_list import read_exclude_list
from sweepcp.data.formats import SUFFIXES, file_format, file_suffix
from sweepcp.data.path_patterns import check_is_file, expand_pattern, file_identity
from sweepcp.data.python_text import find_modules
from sweepcp.data.shards import printable_path
from sweepcp.errors import InvalidInput, located
from sweepcp.util.file_hashes import cached_hashes, content_hashes
from sweepcp.util.json_values import digest
from sweepcp.util.paths import describe_kind, user_path

FIELDS_WITHOUT_EFFECT = {
    "files",
    "held_out_files",
    "exclude",
    "weight",
    "role",
    "language",
    "max_epochs",
    "beyond_max_epochs",
    "bad_records",
    "name",
}
"""Fields of a source that change none of its tokens, or that name files, which count by content."""
SHOWN_LINKS = 3
"""Links that a warning names, at most."""
CORRECT_PATH = "correct the path; it is relative to the folder of the experiment file"


@dataclass(frozen=True)
class ResolvedSource:
    """The files of a source; empty for a hub data set and a planned source."""

    paths: tuple[Path, ...] = ()
    """Files in the order in which they are read, or the folder of a saved data set."""
    held_out_paths: tuple[Path, ...] = ()
    """Files that are held out whole."""
    exclude: Path | None = None
    """The list of documents to leave out."""
    skipped: tuple[Path, ...] = ()
    """Files in a named folder that are in no format that can be read."""
    repeated: tuple[Path, ...] = ()
    """Further links to files that are read; a file is read once."""


def resolve_source(source: Source, *, folder: Path) -> ResolvedSource:
    """List the files of a source without reading them.

    Args:
        source: The source; its paths are relative to `folder`.
        folder: The folder of the experiment file.

    Raises:
        InvalidInput: A path does not exist, cannot be read or contains a link to a folder above it;
            a package is not installed; a corpus is empty; a file is named twice, or both trained on
            and held out. The key is relative to the source, and no file is named.
    """
    exclude = None
    if source.exclude is not None:
        with located(file="", key="exclude"):
            exclude = _existing_path(folder, source.exclude, is_folder=False)
            read_exclude_list(exclude)
    if source.python is not None:
        with located(file="", key="python"):
            modules = find_modules(source.python)
        return ResolvedSource(tuple(modules), exclude=exclude)
    if source.saved is not None:
        with located(file="", key="saved.path"):
            path = _existing_path(folder, source.saved.path, is_folder=True)
        return ResolvedSource((path,), exclude=exclude)
    if source.files is None:
        return ResolvedSource(exclude=exclude)
    with located(file="", key="files"):
        named, skipped = _resolve_patterns(folder, source.files)
        paths = _without_repeats(named)
    with located(file="", key="held_out_files"):
        held_out_named, held_out_skipped = _resolve_patterns(folder, source.held_out_files or ())
        held_out = _without_repeats(held_out_named)
        _check_disjoint(paths=paths, held_out=held_out)
    _check_template(source, [*paths, *held_out])
    repeated = set(named) - set(paths) | set(held_out_named) - set(held_out)
    return ResolvedSource(
        paths=tuple(paths),
        held_out_paths=tuple(held_out),
        exclude=exclude,
        skipped=tuple(skipped + held_out_skipped),
        repeated=tuple(sorted(repeated)),
    )


def describe_left_out(files: ResolvedSource) -> list[str]:
    """Return a sentence for each kind of files that a source names and does not read."""
    notes: list[str] = []
    if files.skipped:
        suffixes = ", ".join(sorted({path.suffix or path.name for path in files.skipped}))
        notes.append(
            f"skipped {len(files.skipped)} files of formats that are not read ({suffixes})"
        )
    if files.repeated:
        links = ", ".join(path.name for path in files.repeated[:SHOWN_LINKS])
        notes.append(
            f"a file is read once; left out {len(files.repeated)} further links to files that are "
            f"read ({links})"
        )
    return [printable_path(note) for note in notes]


def source_fingerprint(source: Source, files: ResolvedSource) -> str:
    """Return 16 hex digits that change if the text of a source, or the way it is read, changes.

    Files count by format and content, in the order in which they are read; paths and times have no
    effect. A file that was hashed before is read again only if its stamps have changed, see
    `content_hashes`.
    """
    labelled = _labelled_files(source, files)
    with located(source.name, f"sources.{source.name}"):
        hashes = content_hashes([path for _, path in labelled])
    return _digest_source(source, [label for label, _ in labelled], hashes)


def cached_fingerprint(source: Source, files: ResolvedSource) -> str | None:
    """Return `source_fingerprint` without reading a file; None if one would have to be read."""
    labelled = _labelled_files(source, files)
    hashes = cached_hashes([path for _, path in labelled])
    if hashes is None:
        return None
    return _digest_source(source, [label for label, _ in labelled], hashes)


def _digest_source(source: Source, labels: list[list[str]], hashes: list[str]) -> str:
    settings = source.model_dump(mode="json", exclude=FIELDS_WITHOUT_EFFECT)
    if source.saved is not None:
        settings["saved"]["path"] = None
    # What decides on the documents besides the files: ast and pydoc of this Python, the detector.
    tools: list[Any] = []
    if source.python is not None:
        tools.append(sys.version_info[:3])
    if source.filters.languages:
        tools.append(version("py3langid"))
    return digest([settings, tools, list(zip(labels, hashes, strict=True))])


def _labelled_files(source: Source, files: ResolvedSource) -> list[tuple[list[str], Path]]:
    """Return the files that decide a source's documents, each with its use and its format."""
    labelled: list[tuple[list[str], Path]] = []
    for use, paths in (("read", files.paths), ("held out", files.held_out_paths)):
        for path in paths:
            if source.saved is not None:
                labelled += _saved_files(path, source.saved.split)
            else:
                labelled.append(([use, _format_label(path)], path))
    if files.exclude is not None:
        labelled.append((["excluded"], files.exclude))
    return labelled


def _format_label(path: Path) -> str:
    return file_suffix(path) or path.suffix


def _saved_files(folder: Path, split: str | None) -> list[tuple[list[str], Path]]:
    """Return the files of a saved data set, without those that `datasets` caches beside them."""
    folder = folder / split if split and (folder / split).is_dir() else folder
    labelled = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not is_hidden and not file.match("cache-*.arrow"):
            labelled.append((["saved", printable_path(name)], file))
    return labelled


def _resolve_patterns(folder: Path, patterns: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files that can be read, in the order of the patterns, and those that cannot."""
    paths: list[Path] = []
    skipped: list[Path] = []
    for pattern in patterns:
        path = user_path(pattern, folder=folder)
        try:
            files = expand_pattern(path)
            matches = [file for file in files if file_suffix(file)]
            others = [file for file in files if not file_suffix(file)]
            for file in files:
                if file_suffix(file) or not files[file]:
                    check_is_file(file)
        except OSError as error:
            raise _no_permission(error) from None
        # What a folder also holds is left out; what is named is not.
        unknown = [file for file in others if not files[file] or not matches]
        if unknown:
            raise _unknown_kind(unknown[0])
        if not matches:
            raise _no_match(path, folder=folder, pattern=pattern)
        paths += matches
        skipped += others
    if patterns:
        _check_not_empty(paths)
    _check_unique(paths)
    return paths, skipped


def _existing_path(folder: Path, name: str, *, is_folder: bool) -> Path:
    path = user_path(name, folder=folder).absolute()
    kind = "folder" if is_folder else "file"
    if describe_kind(path) != f"a {kind}":
        rule = f"an existing path of a {kind} (looked for {path}; this is {describe_kind(path)})"
        raise InvalidInput(found=name, rule=rule, fix=CORRECT_PATH)
    return path


def _no_match(path: Path, *, folder: Path, pattern: str) -> InvalidInput:
    if path.is_dir():
        rule = "a folder that holds files which are not hidden; this one is empty"
        return InvalidInput(found=pattern, rule=rule, fix="name another folder, or fill it")
    rule = f"a file, or a folder of files, below {folder}"
    return InvalidInput(found=pattern, rule=rule, fix=CORRECT_PATH)


def _no_permission(error: OSError) -> InvalidInput:
    rule = f"a path that can be read ({error.strerror})"
    fix = "grant permission to read it, or leave it out"
    return InvalidInput(found=printable_path(str(error.filename)), rule=rule, fix=fix)


def _unknown_kind(path: Path) -> InvalidInput:
    rule = f"a file name that ends in one of {', '.join(SUFFIXES)}"
    return InvalidInput(found=str(path), rule=rule, fix="convert or rename it")


def _check_template(source: Source, paths: list[Path]) -> None:
    plain = [path for path in paths if file_format(path).kind == ".txt"]
    if source.template is not None and plain:
        raise InvalidInput(
            key="template",
            found=str(plain[0]),
            rule="records with fields; a .txt file has none",
            fix="remove `template:`, or move the .txt files to a source of their own",
        )


def _check_not_empty(paths: list[Path]) -> None:
    if sum(map(_readable_size, paths)) == 0:
        names = ", ".join(map(str, paths[:3]))
        rule = "files with text; these are empty"
        raise InvalidInput(found=names, rule=rule, fix="name files that contain text")


def _check_unique(paths: list[Path]) -> None:
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        fix = "name it once; two globs may both match it"
        raise InvalidInput(found=str(min(repeated)), rule="a file is named once", fix=fix)


def _without_repeats(paths: list[Path]) -> list[Path]:
    """Return the paths in their order, with one path of each file: a link only if all are links."""
    chosen: dict[tuple[int, int], Path] = {}
    for path in paths:
        first = chosen.setdefault(file_identity(path), path)
        if first.is_symlink() and not path.is_symlink():
            chosen[file_identity(path)] = path
    kept = set(chosen.values())
    return [path for path in paths if path in kept]


def _check_disjoint(*, paths: list[Path], held_out: list[Path]) -> None:
    trained = set(map(file_identity, paths))
    shared = [path for path in held_out if file_identity(path) in trained]
    if shared:
        rule = "a file is trained on or held out, not both"
        fix = "remove it from `files` or from `held_out_files`"
        raise InvalidInput(found=str(min(shared)), rule=rule, fix=fix)


def _readable_size(path: Path) -> int:
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        rule = f"a file that can be read ({error.strerror})"
        fix = "grant read permission, correct the link, or leave the file out"
        raise InvalidInput(found=str(path), rule=rule, fix=fix) from None
