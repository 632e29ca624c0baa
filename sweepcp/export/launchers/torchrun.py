"""torchrun by hand: one script, started on every node."""

from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.shell import (
    PORT,
    export_lines,
    option_lines,
    process_environment,
    shutdown_timeout,
    torchrun_command,
)


def write(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """`run.sh`. On several nodes MASTER_ADDR names one of them, the same everywhere."""
    nodes = source.bundle.target.hardware.nodes
    place = ["--standalone", "--nnodes", "1"]
    ask = ""
    if nodes > 1:
        ask = ': "${MASTER_ADDR:?name one of the nodes, the same on all}"\n'
        place = [
            "--nnodes",
            str(nodes),
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            ShellVariable(f"$MASTER_ADDR:{PORT}"),
        ]
        place += ["--rdzv-id", f"{source.job}-{source.bundle.recipe_id}"]
    variables = process_environment(source, handoff) | shutdown_timeout(source)
    command = option_lines(torchrun_command(source, handoff, place))
    return {"run.sh": f"set -euo pipefail\n{export_lines(source, variables)}{ask}exec {command}\n"}


def how(source: ExportInput) -> str:
    """How it is started."""
    nodes = source.bundle.target.hardware.nodes
    return f"bash {source.out}/run.sh" + (
        f"   (on each of {nodes} nodes, with MASTER_ADDR set)" if nodes > 1 else ""
    )
