"""`sweepcp train`: the bundle itself is what is run."""

from sweepcp.export.handoff import Handoff, Source
from sweepcp.export.transformers_keys import flat


def write(source: Source) -> Handoff:
    """No file of its own: `sweepcp train` reads the bundle, whose hashes it checks."""
    return Handoff(
        files={},
        command=("-m", "sweepcp", "train", str(source.opened.path), "--out", source.run),
        settings=flat("ds_config.json", source.opened.ds_config),
        saves_on_term=True,
    )
