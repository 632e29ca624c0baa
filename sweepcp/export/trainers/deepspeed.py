"""`sweepcp train`: the bundle itself is what is run."""

from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.transformers_keys import flatten_settings


def write(source: ExportInput) -> ExportPlan:
    """No file of its own: `sweepcp train` reads the bundle, whose hashes it checks."""
    return ExportPlan(
        files={},
        command=("-m", "sweepcp", "train", str(source.opened.path), "--out", source.run),
        settings=flatten_settings("ds_config.json", source.opened.ds_config),
        saves_on_term=True,
    )
