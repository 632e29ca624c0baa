"""`sweepcp train`, which runs the bundle itself under DeepSpeed ZeRO-3."""

from sweepcp.export.export_plan import ExportInput, ExportPlan, dropout_notes, zero_config_of
from sweepcp.export.transformers_keys import flatten_settings


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan no files: `sweepcp train` reads the bundle and checks its hashes."""
    bundle = str(export_input.loaded.path)
    folder = (
        export_input.bundle.target.checkpoints.folder or f"{export_input.run_folder}/checkpoints"
    )
    return ExportPlan(
        files={},
        command=("-m", "sweepcp", "train", bundle, "--out", export_input.run_folder),
        settings=flatten_settings("ds_config.json", zero_config_of(export_input)),
        notes=dropout_notes(export_input),
        saves_on_term=True,
        complete_checkpoint=f"{folder}/step-*/manifest.json",
    )
