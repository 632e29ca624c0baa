"""TODO export.text_checks."""

import re
from collections.abc import Iterable
from pathlib import Path

from sweepcp.config.safe_text import HUB, NAME, PATH, refuse_secret
from sweepcp.errors import InvalidInput
from sweepcp.promote.bundle import LoadedBundle


def check_bundle_texts(opened: LoadedBundle, out: Path) -> None:
    """Refuse a bundle, or a folder, whose names or paths could be more than that in a file. Raises `BadInput`."""
    if not PATH.fullmatch(str(out)):
        raise InvalidInput(
            file="export",
            key="--out",
            found=str(out),
            rule=f"a path that matches {PATH.pattern}",
            fix="name another folder",
        )
    bundle, where = opened.bundle, opened.path / "bundle.json"
    texts: list[tuple[str, str | None, re.Pattern[str], str]] = [
        ("name", bundle.name, NAME, "promote again from a target with a plain name"),
        ("target.name", bundle.target.name, NAME, "promote again from a target with a plain name"),
        (
            "the folder",
            str(opened.path),
            PATH,
            "move the bundle to a path without spaces and special characters",
        ),
        ("model.path", bundle.model.path, PATH, "move the model, and promote again"),
        ("model.hub", bundle.model.hub, HUB, "name the model as organisation/name"),
        ("model.revision", bundle.model.revision, NAME, "name a commit, and promote again"),
        (
            "target.checkpoints.folder",
            bundle.target.checkpoints.folder,
            PATH,
            "name another folder, promote again",
        ),
    ]
    for corpus in bundle.corpora:
        texts.append(
            (
                f"corpora.{corpus.name}.name",
                corpus.name,
                NAME,
                "rename the source in its experiment",
            )
        )
        texts.append(
            (
                f"corpora.{corpus.name}.store",
                corpus.store,
                PATH,
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
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no plain file name")
