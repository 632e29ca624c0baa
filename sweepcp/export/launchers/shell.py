"""Shell scripts and commands: quoting, environment variables, torchrun."""

import shlex
from collections.abc import Iterable, Sequence

from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable

RENDEZVOUS_PORT = 29500
MAX_RESTARTS = 3
"""Restarts after which torchrun gives up; each resumes from the last checkpoint."""


def quote_words(words: Iterable[str]) -> str:
    """Return a command in one line, with its words quoted."""
    return " ".join(
        f'"{word}"' if isinstance(word, ShellVariable) else shlex.quote(word) for word in words
    )


def option_lines(words: Iterable[str]) -> str:
    """Return a command with one option and its value per line."""
    groups: list[list[str]] = []
    for word in words:
        if groups and _awaits_value(groups[-1]) and not word.startswith("-"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return " \\\n    ".join(quote_words(group) for group in groups)


def quote_glob(path: str) -> str:
    """Return a path whose `*` the shell expands, and of which it changes nothing else."""
    return "*".join(shlex.quote(part) if part else "" for part in path.split("*"))


def setup_block(lines: Sequence[str]) -> str:
    """Return a site's own shell code between lines that mark it; nothing without any."""
    if not lines:
        return ""
    # sbatch reads options up to the first command. The shell code must not add any, and not leave
    # an option of the shell behind with which the script would end early.
    begin = ": # Shell code of the site file follows."
    end = "# End of the shell code of the site file.\nset +e"
    return "\n".join([begin, *lines, end]) + "\n"


def process_environment(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return the environment variables of every process."""
    return {"OMP_NUM_THREADS": "1"} | plan.env | export_input.site.env


def shutdown_timeout(export_input: ExportInput) -> dict[str, str]:
    """Return the variable that gives processes the site's grace period to save after SIGTERM.

    torchrun forwards SIGTERM to its processes, and by default kills them 30 s later.
    """
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(export_input.site.grace)}


def torchrun_restarts(plan: ExportPlan) -> str:
    """Return what torchrun does after a failure, as a sentence."""
    final = " A restart after status 3 ends at once." if plan.starts_sweepcp else ""
    return (
        f"torchrun restarts the processes up to {MAX_RESTARTS} times, whatever their exit status, "
        f"and then exits with 1.{final}"
    )


def export_lines(export_input: ExportInput, variables: dict[str, str]) -> str:
    """Return lines that set the variables, and that fail where a secret is not set."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    message = "is a secret of this job; set it in the environment that submits the job"
    lines += [f': "${{{name}:?{message}}}"' for name in export_input.site.secrets]
    return "\n".join(lines) + "\n"


def torchrun_command(
    export_input: ExportInput,
    plan: ExportPlan,
    node_options: Iterable[str],
    *,
    max_restarts: int = MAX_RESTARTS,
) -> list[str]:
    """Return the command that starts the processes of one node.

    Args:
        export_input: Target and site.
        plan: The trainer's plan, whose command every process runs.
        node_options: torchrun's options that give the node's rank and the rendezvous.
        max_restarts: Restarts by torchrun itself.
    """
    per_node = str(export_input.bundle.target.hardware.per_node)
    torchrun = [export_input.site.python, "-m", "torch.distributed.run"]
    options = ["--nproc-per-node", per_node, *node_options, "--max-restarts", str(max_restarts)]
    return [*torchrun, *options, *plan.command]


def _awaits_value(group: list[str]) -> bool:
    """Return whether a group is a lone option whose value may follow."""
    return len(group) == 1 and group[0].startswith("-") and "=" not in group[0]
