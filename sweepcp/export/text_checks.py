"""TODO export.text_checks."""

import re
from collections.abc import Iterable
from pathlib import Path

from sweepcp.config.safe_text import HUB_ID_PATTERN, NAME_PATTERN, PATH_PATTERN, refuse_secret
from sweepcp.errors import InvalidInput
from sweepcp.promote.bundle import LoadedBundle


def check_bundle_texts(opened: LoadedBundle, out: Path) -> None:
    """Refuse a bundle, or a folder, whose names or paths could be more than that in a file. Raises `BadInput`."""
    if not PATH_PATTERN.fullmatch(str(out)):
        raise InvalidInput(
            file="export",
            key="--out",
            found=str(out),
            rule=f"a path that matches {PATH_PATTERN.pattern}",
            fix="name another folder",
        )
    bundle, where = opened.bundle, opened.path / "bundle.json"
    texts: list[tuple[str, str | None, re.Pattern[str], str]] = [
        ("name", bundle.name, NAME_PATTERN, "promote again from a target with a plain name"),
        ("target.name", bundle.target.name, NAME_PATTERN, "promote again from a target with a plain name"),
        (
            "the folder",
            str(opened.path),
            PATH_PATTERN,
            "move the bundle to a path without spaces and special characters",
        ),
        ("model.path", bundle.model.path, PATH_PATTERN, "move the model, and promote again"),
        ("model.hub", bundle.model.hub, HUB_ID_PATTERN, "name the model as organisation/name"),
        ("model.revision", bundle.model.revision, NAME_PATTERN, "name a commit, and promote again"),
        (
            "target.checkpoints.folder",
            bundle.target.checkpoints.folder,
            PATH_PATTERN,
            "name another folder, promote again",
        ),
    ]
    for corpus in bundle.corpora:
        texts.append(
            (
                f"corpora.{corpus.name}.name",
                corpus.name,
                NAME_PATTERN,
                "rename the source in its experiment",
            )
        )
        texts.append(
            (
                f"corpora.{corpus.name}.store",
                corpus.store,
                PATH_PATTERN,
                "move the store, and promote again",
            )
        )
    for key, text, pattern, fix in texts:
        if text is None:
            continue
        if not pattern.fullmatch(text) or ".." in text.split("/"):
            raise InvalidInput(
                file=where,
                key=key,
                found=text,
                rule=f"text that matches {pattern.pattern}, without `..`",
                fix=fix,
            )
        refuse_secret(where, key, text)


def check_file_names(names: Iterable[str]) -> None:
    """Names of exported files are plain: no folders, nothing that leaves the folder."""
    for name in names:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is no plain file name")
