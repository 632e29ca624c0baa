"""Shell scripts: words that are quoted, and the variables among them."""

import shlex
from collections.abc import Iterable

from sweepcp.export.handoff import Handoff, Source

PORT = 29500
RESTARTS = 3
"""After so many failures torchrun gives up; each start goes on from the last checkpoint."""


class Raw(str):
    """A word with a variable in it, which stands in double quotes."""


def words(parts: Iterable[str]) -> str:
    """Words of a command in one line, quoted."""
    return " ".join(f'"{part}"' if isinstance(part, Raw) else shlex.quote(part) for part in parts)


def lines(parts: Iterable[str], indent: str = "") -> str:
    """A command with an option on each line."""
    groups: list[list[str]] = []
    for part in parts:
        if not groups or part.startswith("-") or len(groups[-1]) > 1 or not groups[-1][0].startswith("-"):
            groups.append([part])
        else:
            groups[-1].append(part)
    return f" \\\n{indent}    ".join(words(group) for group in groups)


def environment(source: Source, handoff: Handoff) -> dict[str, str]:
    """Variables of every process. torchrun passes TERM on, and kills after 30 s unless it is told to wait longer."""
    own = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(source.site.grace)}
    return own | handoff.env | source.site.env


def exports(source: Source, handoff: Handoff) -> str:
    """Lines that set the variables, and ask for the secrets, which come from where the job is submitted."""
    found = [f"export {name}={shlex.quote(value)}" for name, value in environment(source, handoff).items()]
    found += [
        f': "${{{name}:?is a secret of this job: set it where the job is submitted}}"' for name in source.site.secrets
    ]
    return "\n".join(found) + "\n"


def torchrun(source: Source, handoff: Handoff, place: Iterable[str], restarts: int = RESTARTS) -> list[str]:
    """The command that starts a node's processes; `place` says where its node is among the others."""
    python, per_node = source.site.python, source.bundle.target.hardware.per_node
    start = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(per_node), *place]
    return [*start, "--max-restarts", str(restarts), *handoff.command]
