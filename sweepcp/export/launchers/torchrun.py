"""torchrun by hand: one script that is started on every node."""

from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.shell import (
    RENDEZVOUS_PORT,
    export_lines,
    option_lines,
    process_environment,
    quote_words,
    shutdown_timeout,
    torchrun_command,
    torchrun_restarts,
)

REQUIRE_MASTER_ADDR = (
    ': "${MASTER_ADDR:?set it to the address of one node, the same on all nodes}"\n'
)


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `run.sh`. On several nodes it needs MASTER_ADDR, the address of one of them."""
    nodes = export_input.bundle.target.hardware.nodes
    if nodes == 1:
        required, node_options = "", ["--standalone", "--nnodes", "1"]
    else:
        required = REQUIRE_MASTER_ADDR
        endpoint = ShellVariable(f"$MASTER_ADDR:{RENDEZVOUS_PORT}")
        rendezvous_id = f"{export_input.job_name}-{export_input.bundle.recipe_id}"
        node_options = ["--nnodes", str(nodes), "--rdzv-backend", "c10d"]
        node_options += ["--rdzv-endpoint", endpoint, "--rdzv-id", rendezvous_id]
    variables = process_environment(export_input, plan) | shutdown_timeout(export_input)
    exports = export_lines(export_input, variables)
    command = option_lines(torchrun_command(export_input, plan, node_options))
    return {"run.sh": f"set -euo pipefail\n{exports}{required}exec {command}\n"}


def restart_policy(_export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    return torchrun_restarts(plan)


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    nodes = export_input.bundle.target.hardware.nodes
    command = quote_words(["bash", f"{export_input.out}/run.sh"])
    return command if nodes == 1 else f"{command}  # on each of {nodes} nodes, with MASTER_ADDR set"
