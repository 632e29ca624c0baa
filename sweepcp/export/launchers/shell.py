"""Shell scripts: words that are quoted, and the variables among them."""

import shlex
from collections.abc import Iterable

from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable

PORT = 29500
RESTARTS = 3
"""After so many failures torchrun gives up; each start goes on from the last checkpoint."""


def quote_words(parts: Iterable[str]) -> str:
    """Words of a command in one line, quoted."""
    return " ".join(
        f'"{part}"' if isinstance(part, ShellVariable) else shlex.quote(part) for part in parts
    )


def option_lines(parts: Iterable[str], indent: str = "") -> str:
    """A command with an option on each line."""
    groups: list[list[str]] = []
    for part in parts:
        last = groups[-1] if groups else []
        if (
            len(last) == 1
            and last[0].startswith("-")
            and "=" not in last[0]
            and not part.startswith("-")
        ):
            last.append(part)  # an option's value
        else:
            groups.append([part])
    return f" \\\n{indent}    ".join(quote_words(group) for group in groups)


def process_environment(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """Variables of every process."""
    return {"OMP_NUM_THREADS": "1"} | handoff.env | source.site.env


def shutdown_timeout(source: ExportInput) -> dict[str, str]:
    """torchrun passes TERM on to its processes, and kills them after 30 s unless it is told to wait longer."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(source.site.grace)}


def export_lines(source: ExportInput, variables: dict[str, str]) -> str:
    """Lines that set the variables, and ask for the secrets, which come from where the job is submitted."""
    found = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    found += [
        f': "${{{name}:?is a secret of this job: set it where the job is submitted}}"'
        for name in source.site.secrets
    ]
    return "\n".join(found) + "\n"


def torchrun_command(
    source: ExportInput, handoff: ExportPlan, place: Iterable[str], restarts: int = RESTARTS
) -> list[str]:
    """The command that starts a node's processes; `place` says where its node is among the others."""
    python, per_node = source.site.python, source.bundle.target.hardware.per_node
    start = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(per_node), *place]
    return [*start, "--max-restarts", str(restarts), *handoff.command]
