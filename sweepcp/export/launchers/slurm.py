"""Slurm: a batch script that saves and requeues itself at its time limit and on preemption."""

import shlex
from string import Template

from sweepcp.config.site import Site
from sweepcp.errors import InvalidInput
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
leaving=
# USR1: the time limit is near. TERM: the nodes are needed by another job.
leave() {
    trap '' TERM USR1
    leaving=$$1
    echo "job $$SLURM_JOB_ID: saving a checkpoint, then requeueing"
    # Signals all job steps, but not this script.
    scancel --signal=TERM "$$SLURM_JOB_ID"
}
trap 'leave TERM' TERM
trap 'leave USR1' USR1
job_has() {
    scontrol show job "$$SLURM_JOB_ID" | grep -qE "$$1"
}
saved_since() {
    [ -n "$$(find $checkpoint -newer "$$1" 2>/dev/null)" ]
}

$master: >$started
$start &
step=$$!
status=0
wait "$$step" || status=$$?
# A signal to this script ends the first wait.
if [ -n "$$leaving" ]; then
    status=0
    wait "$$step" || status=$$?
fi
${recorded}if [ "$$status" -eq 0 ] && [ -z "$$leaving" ]; then
    exit 0
fi
${final}# A job that Slurm ends without preemption or a time limit was cancelled. While this script
# runs, COMPLETING is shown instead of CANCELLED.
if [ "$$leaving" != USR1 ] && job_has 'JobState=(COMPLETING|CANCELLED)' &&
    ! job_has 'PreemptTime=[0-9]'; then
    exit "$$status"
fi
# USR1 (138) and USR2 (140) come from the scheduler, and so does TERM if this script got it, too:
# requeued, however often. Anything else is a failure, also other signals: KILL may be lack of
# memory, ABRT and SEGV a broken node, and TERM (143) is what srun sends to the processes that are
# left when one of them fails. On preemption torchrun exits with 1, as after a failure. A job that
# comes to its time limit without a checkpoint has failed, too: the limit is too short.
failed=yes
case "$$leaving$$status" in
138 | 140 | TERM*) failed= ;;
USR1*) saved_since $started && failed= ;;
*) job_has 'PreemptTime=[0-9]' && failed= ;;
esac
if [ -n "$$failed" ]; then
    # Failures before the last complete checkpoint do not count.
    saved_since $failures && rm $failures
    echo "failed with status $$status" >>$failures
    if [ "$$(wc -l <$failures)" -gt $most ]; then
        echo "job $$SLURM_JOB_ID: status $$status after $most earlier failures: not requeued"
        exit "$$status"
    fi
fi
echo "job $$SLURM_JOB_ID: status $$status, requeueing to resume from the last checkpoint"
scontrol requeue "$$SLURM_JOB_ID"
""")
RECORDED = Template("""\
# srun kills the other processes as soon as one has ended, and reports the highest of their
# statuses. The run itself records how it ended: for good (0 or 3), perhaps before this job, or else
# in this job. One that records TERM was told to leave, and has saved its state.
recorded=$$(sed -n 's/^ "status": \\([0-9]*\\),$$/\\1/p' $ended 2>/dev/null)
case "$$recorded" in
0 | 3) status=$$recorded ;;
143) [ $ended -nt $started ] && status=143 leaving=$${leaving:-TERM} ;;
?*) [ $ended -nt $started ] && status=$$recorded ;;
esac
""")
FINAL = """\
# Invalid input (2), diverged or alarmed (3): another start would end the same way.
case "$status" in
0 | 2 | 3) exit "$status" ;;
esac
"""
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
    _check_time(export_input.site)
    starts_sweepcp = plan.starts_sweepcp
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
    ended, started = f"{export_input.run_folder}/ended.json", f"{export_input.out}/started"
    script = SCRIPT.substitute(
        exports=export_lines(export_input, variables),
        master="" if starts_sweepcp else RENDEZVOUS,
        start=start,
        started=started,
        recorded=RECORDED.substitute(ended=ended, started=started) if starts_sweepcp else "",
        final=FINAL if starts_sweepcp else "",
        checkpoint=plan.complete_checkpoint,
        failures=f"{export_input.out}/failures",
        most=export_input.site.slurm.max_failures,
    )
    header = "\n".join(f"#SBATCH --{option}" for option in options)
    return {"job.sbatch": f"{header}\n\n{script}"}


def restart_policy(export_input: ExportInput, plan: ExportPlan) -> str:
    """Return when the launcher starts the trainer again, as a sentence."""
    final = "; not after status 2 or 3" if plan.starts_sweepcp else ""
    most = export_input.site.slurm.max_failures
    return (
        "The job requeues itself after preemption, at its time limit and after a failure, at most "
        f"{most} times in a row without a new checkpoint{final}."
    )


def start_command(export_input: ExportInput) -> str:
    """Return the command that starts the run."""
    return f"sbatch {export_input.out}/job.sbatch"


def _check_time(site: Site) -> None:
    """Refuse a time limit that leaves a job no time to train.

    The signal to save comes `grace` seconds before the limit. A job that gets it while it is still
    loading saves nothing, is requeued, and so on for ever.
    """
    if site.slurm.time is None:
        return
    days, _, clock = site.slurm.time.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    limit = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if limit < 2 * site.grace:
        raise InvalidInput(
            key="slurm.time",
            found=site.slurm.time,
            rule=f"at least twice the `grace` of {site.grace} s in which a job saves before its "
            "time limit, so that it also has time to train",
            fix="raise the time, or lower `grace`",
        )


def _torchrun_per_node(export_input: ExportInput, plan: ExportPlan) -> str:
    nodes = export_input.bundle.target.hardware.nodes
    node_options = ["--nnodes", str(nodes), "--node-rank", ShellVariable("$SLURM_NODEID")]
    node_options += ["--master-addr", ShellVariable("$MASTER_ADDR")]
    node_options += ["--master-port", ShellVariable("$MASTER_PORT")]
    # No restarts by torchrun: the script requeues the job, which counts its failures.
    torchrun = torchrun_command(export_input, plan, node_options, max_restarts=0)
    inner = shlex.quote("exec " + option_lines(torchrun))
    command = " ".join([*SRUN, f"bash -c {inner}"])
    # The node's id is only known to the shell that srun starts there.
    return f"# shellcheck disable=SC2016\n{command}"


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
