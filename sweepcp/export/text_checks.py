"""Checks that names and paths of a bundle cannot inject anything into exported files."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sweepcp.config.safe_text import (
    HUB_ID_PATTERN,
    NAME_PATTERN,
    NOT_IN_PATHS,
    is_path,
    refuse_secret,
)
from sweepcp.errors import InvalidInput, located
from sweepcp.promote.bundle import Bundle, LoadedBundle

PATH_RULE = f"an absolute path without `..`, line breaks and {NOT_IN_PATHS}"


class _Text(NamedTuple):
    """Text of a bundle that is written into exported files."""

    key: str
    value: str | None
    pattern: re.Pattern[str] | None
    """None for a path."""
    fix: str


def plain_path(path: Path) -> Path:
    """Return an absolute path without `..`; links are followed only where there was one."""
    return path.resolve() if ".." in path.parts else path.absolute()


def check_bundle_texts(loaded: LoadedBundle, out: Path) -> None:
    """Raise `InvalidInput` for an unsafe name or path in the bundle, or an unsafe output folder."""
    if not is_path(str(out)):
        raise InvalidInput(
            file="export",
            key="--out",
            found=str(out),
            rule=PATH_RULE,
            fix="name another folder",
        )
    move_bundle = "move the bundle to a path without these characters"
    texts = [_Text("the folder", str(loaded.path), None, move_bundle)]
    texts += [*_bundle_texts(loaded.bundle), *_corpus_texts(loaded.bundle)]
    for text in texts:
        if text.value is not None:
            with located(loaded.path / "bundle.json", text.key):
                _check_text(text.value, text.pattern, fix=text.fix)


def check_file_names(names: Iterable[str]) -> None:
    """Raise `ValueError` unless all names of exported files are plain, without a folder."""
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is not a plain file name")


def _bundle_texts(bundle: Bundle) -> Iterator[_Text]:
    model, folder = bundle.model, bundle.target.checkpoints.folder
    rename_target = "promote again from a target with a plain name"
    another_folder = "name another folder in the target, and promote again"
    yield _Text("name", bundle.name, NAME_PATTERN, rename_target)
    yield _Text("target.name", bundle.target.name, NAME_PATTERN, rename_target)
    yield _Text("model.path", model.path, None, "move the model, and promote again")
    yield _Text("model.hub", model.hub, HUB_ID_PATTERN, "name the model as organisation/name")
    yield _Text("model.revision", model.revision, NAME_PATTERN, "name a commit, and promote again")
    yield _Text("target.checkpoints.folder", folder, None, another_folder)


def _corpus_texts(bundle: Bundle) -> Iterator[_Text]:
    for corpus in bundle.corpora:
        key = f"corpora.{corpus.name}"
        rename_source = "rename the source in its experiment"
        yield _Text(f"{key}.name", corpus.name, NAME_PATTERN, rename_source)
        yield _Text(f"{key}.store", corpus.store, None, "move the store, and promote again")


def _check_text(text: str, pattern: re.Pattern[str] | None, *, fix: str) -> None:
    if pattern is None:
        valid, rule = is_path(text), PATH_RULE
    else:
        valid = pattern.fullmatch(text) is not None and ".." not in text.split("/")
        rule = f"text that matches {pattern.pattern}, without `..`"
    if not valid:
        raise InvalidInput(found=text, rule=rule, fix=fix)
    refuse_secret(text)
