"""Slurm: a batch script that saves and requeues itself at its time limit and on preemption."""

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

SRUN = ("srun", "--kill-on-bad-exit=1")
SCRIPT = Template("""\
set -uo pipefail
$exports
step=
# USR1: the time limit is near. TERM: the nodes are needed by another job.
leave() {
    trap '' TERM USR1
    echo "job $$SLURM_JOB_ID: saving a checkpoint, then requeueing"
    # Signals all job steps, but not this script.
    scancel --signal=TERM "$$SLURM_JOB_ID"
    wait "$$step"
    scontrol requeue "$$SLURM_JOB_ID"
    exit 0
}
trap leave TERM USR1
# On preemption Slurm signals the job steps, not this script. torchrun then exits with 1, as after a
# failure.
preempted() {
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
# A status above 128 is a signal. Of these only KILL counts as a failure: it may be lack of memory.
if { [ "$$status" -le 128 ] || [ "$$status" -eq 137 ]; } && ! preempted; then
    echo "failed with status $$status" >>$failures
    if [ "$$(wc -l <$failures)" -gt $most ]; then
        echo "job $$SLURM_JOB_ID: status $$status after $most earlier failures: not requeued"
        exit "$$status"
    fi
fi
echo "job $$SLURM_JOB_ID: status $$status, requeueing to resume from the last checkpoint"
scontrol requeue "$$SLURM_JOB_ID"
""")
EXIT_IF_FINAL = """\
# Invalid input (2), diverged or alarmed (3): another start would end the same way.
if [ "$status" -eq 2 ] || [ "$status" -eq 3 ]; then
    exit "$status"
fi"""
RENDEZVOUS = """\
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Derived from the job's id, so that jobs on the same node do not collide.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
"""


def render(export_input: ExportInput, plan: ExportPlan) -> dict[str, str]:
    """Return `job.sbatch`.

    srun starts `sweepcp train` itself, with one task per process. Other trainers get one torchrun
    per node.
    """
    starts_sweepcp = plan.command[:3] == ("-m", "sweepcp", "train")
    variables = process_environment(export_input, plan)
    per_node = export_input.bundle.target.hardware.per_node
    if starts_sweepcp:
        tasks_per_node = per_node
        start = option_lines([*SRUN, export_input.site.python, *plan.command])
    else:
        tasks_per_node = 1
        variables |= shutdown_timeout(export_input)
        start = _torchrun_per_node(export_input, plan)
    devices_per_task = per_node // tasks_per_node
    options = _sbatch_options(
        export_input, tasks_per_node=tasks_per_node, devices_per_task=devices_per_task
    )
    script = SCRIPT.substitute(
        exports=export_lines(export_input, variables),
        master="" if starts_sweepcp else RENDEZVOUS,
        start=start,
        final=EXIT_IF_FINAL if starts_sweepcp else "",
        failures=f"{export_input.out}/failures",
        most=export_input.site.slurm.max_failures,
    )
    header = "\n".join(f"#SBATCH --{option}" for option in options)
    return {"job.sbatch": f"{header}\n\n{script}"}


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    return f"sbatch {export_input.out}/job.sbatch"


def _torchrun_per_node(export_input: ExportInput, plan: ExportPlan) -> str:
    nodes = export_input.bundle.target.hardware.nodes
    node_options = ["--nnodes", str(nodes), "--node-rank", ShellVariable("$SLURM_NODEID")]
    node_options += ["--master-addr", ShellVariable("$MASTER_ADDR")]
    node_options += ["--master-port", ShellVariable("$MASTER_PORT")]
    # No restarts by torchrun: the script requeues the job, which counts its failures.
    torchrun = torchrun_command(export_input, plan, node_options, max_restarts=0)
    # The node's id is only known to the shell that srun starts there.
    inner = shlex.quote("exec " + option_lines(torchrun))
    return " ".join([*SRUN, f"bash -c {inner}"])


def _sbatch_options(
    export_input: ExportInput, *, tasks_per_node: int, devices_per_task: int
) -> list[str]:
    slurm, hardware = export_input.site.slurm, export_input.bundle.target.hardware
    options = [f"job-name={export_input.job_name}", f"nodes={hardware.nodes}"]
    options.append(f"ntasks-per-node={tasks_per_node}")
    if export_input.on_gpu:
        options.append(f"gres=gpu:{hardware.per_node}")
    if slurm.cpus_per_gpu is not None:
        options.append(f"cpus-per-task={slurm.cpus_per_gpu * devices_per_task}")
    for name in ("partition", "account", "qos", "time"):
        value = getattr(slurm, name)
        if value is not None:
            options.append(f"{name}={value}")
    options += [
        f"output={export_input.out}/slurm-%j.log",
        "open-mode=append",
        "requeue",
        f"signal=B:USR1@{export_input.site.grace}",
    ]
    return options
