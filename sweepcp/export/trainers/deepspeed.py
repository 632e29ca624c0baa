"""`sweepcp train`, which runs the bundle itself under DeepSpeed ZeRO-3."""

from sweepcp.export.export_plan import ExportInput, ExportPlan
from sweepcp.export.transformers_keys import flatten_settings


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan no files: `sweepcp train` reads the bundle and checks its hashes."""
    bundle = str(export_input.loaded.path)
    return ExportPlan(
        files={},
        command=("-m", "sweepcp", "train", bundle, "--out", export_input.run_folder),
        settings=flatten_settings("ds_config.json", export_input.loaded.ds_config),
        saves_on_term=True,
    )
