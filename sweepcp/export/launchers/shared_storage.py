"""Paths of an export on the storage that all nodes mount."""

from pathlib import Path

from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput


def check_shared_paths(export_input: ExportInput, mount: str) -> None:
    """Raise `InvalidInput` unless everything that the job reads and writes is below `mount`."""
    bundle = export_input.bundle
    paths: dict[str, str | None] = {
        "--out": str(export_input.out),
        "the bundle": str(export_input.loaded.path),
        "model.path": bundle.model.path,
    }
    paths |= {f"corpora.{corpus.name}.store": corpus.store for corpus in bundle.corpora}
    for key, path in paths.items():
        if path is not None and not Path(path).is_relative_to(mount):
            raise InvalidInput(
                key=key,
                found=path,
                rule=f"a path below {mount}, where the nodes mount the shared storage",
                fix="move it there, or correct `mount` in the site file",
            )
