"""Slurm: a batch script for all nodes that saves and queues again when its time is up or when it is preempted."""

import shlex
from string import Template

from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.shell import (
    export_lines,
    option_lines,
    process_environment,
    shutdown_timeout,
    torchrun_command,
)

SCRIPT = Template("""\
set -uo pipefail
$exports
step=
leave() { # USR1: the time is nearly up; TERM: the nodes are wanted for another job
    trap '' TERM USR1
    echo "job $$SLURM_JOB_ID: saving, then back into the queue"
    scancel --signal=TERM "$$SLURM_JOB_ID" # all steps, and not this script
    wait "$$step"
    scontrol requeue "$$SLURM_JOB_ID"
    exit 0
}
trap leave TERM USR1
preempted() { # Slurm tells the steps, not this script, and torchrun ends with 1 then, as after a failure
    scontrol show job "$$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}

$master$start &
step=$$!
status=0
wait "$$step" || status=$$?
if [ "$$status" -eq 0 ]; then
    exit 0
fi
$final
# Above 128 is a signal; KILL may be want of memory
if { [ "$$status" -le 128 ] || [ "$$status" -eq 137 ]; } && ! preempted; then
    echo "failed with status $$status" >>$failures
    if [ "$$(wc -l <$failures)" -gt $most ]; then
        echo "job $$SLURM_JOB_ID: status $$status, $most failures before this one: not queued again"
        exit "$$status"
    fi
fi
echo "job $$SLURM_JOB_ID: status $$status, back into the queue; it goes on from the last checkpoint"
scontrol requeue "$$SLURM_JOB_ID"
""")
FINAL = """\
if [ "$status" -eq 2 ] || [ "$status" -eq 3 ]; then # wrong input, diverged, alarmed: again would be the same
    exit "$status"
fi"""
MASTER = """\
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # of this job alone
"""


def write(source: ExportInput, handoff: ExportPlan) -> dict[str, str]:
    """`job.sbatch`. srun itself starts `sweepcp train`, a task a process, and of other trainers a torchrun a node."""
    own = handoff.command[:3] == ("-m", "sweepcp", "train")
    site, hardware = source.site.slurm, source.bundle.target.hardware
    tasks = hardware.per_node if own else 1
    srun = ["srun", "--kill-on-bad-exit=1"]
    if own:
        start = [*srun, source.site.python, *handoff.command]
    else:
        place = ["--nnodes", str(hardware.nodes), "--node-rank", ShellVariable("$SLURM_NODEID")]
        place += [
            "--master-addr",
            ShellVariable("$MASTER_ADDR"),
            "--master-port",
            ShellVariable("$MASTER_PORT"),
        ]
        inner = shlex.quote(
            "exec " + option_lines(torchrun_command(source, handoff, place, restarts=0))
        )
        start = [*srun, f"bash -c {inner}"]
    options = [f"#SBATCH --{line}" for line in _options(source, tasks, hardware.per_node // tasks)]
    text = SCRIPT.substitute(
        exports=export_lines(
            source, process_environment(source, handoff) | ({} if own else shutdown_timeout(source))
        ),
        master="" if own else "export MASTER_ADDR MASTER_PORT\n" + MASTER,
        start=option_lines(start) if own else " ".join(start),
        final=FINAL if own else "",
        failures=f"{source.out}/failures",
        most=site.max_failures,
    )
    return {"job.sbatch": "\n".join(options) + "\n\n" + text}


def how(source: ExportInput) -> str:
    """How it is started."""
    return f"sbatch {source.out}/job.sbatch"


def _options(source: ExportInput, tasks: int, devices: int) -> list[str]:
    """What sbatch is asked for; `devices` are those of a task."""
    site, hardware = source.site.slurm, source.bundle.target.hardware
    options = [f"job-name={source.job}", f"nodes={hardware.nodes}", f"ntasks-per-node={tasks}"]
    if source.on_gpu:
        options.append(f"gres=gpu:{hardware.per_node}")
    if site.cpus_per_gpu is not None:
        options.append(f"cpus-per-task={site.cpus_per_gpu * devices}")
    stated = {name: getattr(site, name) for name in ("partition", "account", "qos", "time")}
    options += [f"{name}={value}" for name, value in stated.items() if value is not None]
    options += [
        f"output={source.out}/slurm-%j.log",
        "open-mode=append",
        "requeue",
        f"signal=B:USR1@{source.site.grace}",
    ]
    return options
