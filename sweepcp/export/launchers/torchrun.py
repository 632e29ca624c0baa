"""torchrun by hand: one script, started on every node."""

from sweepcp.export.handoff import Handoff, Raw, Source
from sweepcp.export.launchers.shell import PORT, environment, exports, lines, patience, torchrun


def write(source: Source, handoff: Handoff) -> dict[str, str]:
    """`run.sh`. On several nodes MASTER_ADDR names one of them, the same everywhere."""
    nodes = source.bundle.target.hardware.nodes
    place = ["--standalone", "--nnodes", "1"]
    ask = ""
    if nodes > 1:
        ask = ': "${MASTER_ADDR:?name one of the nodes, the same on all}"\n'
        place = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", Raw(f"$MASTER_ADDR:{PORT}")]
        place += ["--rdzv-id", f"{source.job}-{source.bundle.recipe_id}"]
    variables = environment(source, handoff) | patience(source)
    command = lines(torchrun(source, handoff, place))
    return {"run.sh": f"set -euo pipefail\n{exports(source, variables)}{ask}exec {command}\n"}


def how(source: Source) -> str:
    """How it is started."""
    nodes = source.bundle.target.hardware.nodes
    return f"bash {source.out}/run.sh" + (f"   (on each of {nodes} nodes, with MASTER_ADDR set)" if nodes > 1 else "")
