"""Slurm: a batch script that saves and requeues itself at its time limit and on preemption."""

import re
import shlex
from string import Template

from sweepcp.config.site import Site
from sweepcp.config.slurm import time_limit
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput, ExportPlan, ShellVariable
from sweepcp.export.launchers.shell import (
    export_lines,
    option_lines,
    process_environment,
    quote_glob,
    quote_words,
    setup_block,
    shutdown_timeout,
    torchrun_command,
)

MAX_SIGNAL_SECONDS = 65535
"""Of `--signal`, as the manual of sbatch states."""
COUNT_PATTERN = re.compile(r"[0-9]{1,9}")
PLAIN_VALUE_PATTERN = re.compile(r"[A-Za-z0-9_.:/,=@%+&|*()\[\]-]+")
"""Values that sbatch reads as they are; others are quoted."""
SCRIPT = Template("""\
${setup}set -uo pipefail
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
    wrapper = export_input.site.slurm.wrapper
    starts_sweepcp = plan.starts_sweepcp
    variables = process_environment(export_input, plan)
    per_node = export_input.bundle.target.hardware.per_node
    tasks_per_node = per_node if starts_sweepcp else 1
    cpus_per_task = _cpus_per_task(export_input, devices=per_node // tasks_per_node)
    srun = _srun_words(export_input.site, cpus_per_task)
    if starts_sweepcp:
        start = option_lines([*srun, *wrapper, export_input.site.python, *plan.command])
    else:
        variables |= shutdown_timeout(export_input)
        start = _torchrun_per_node(export_input, plan, srun)
    options = _sbatch_options(
        export_input, tasks_per_node=tasks_per_node, cpus_per_task=cpus_per_task
    )
    ended = shlex.quote(f"{export_input.run_folder}/ended.json")
    started = shlex.quote(f"{export_input.out}/started")
    script = SCRIPT.substitute(
        setup=setup_block(export_input.site.slurm.setup),
        exports=export_lines(export_input, variables),
        master="" if starts_sweepcp else RENDEZVOUS,
        start=start,
        started=started,
        recorded=RECORDED.substitute(ended=ended, started=started) if starts_sweepcp else "",
        final=FINAL if starts_sweepcp else "",
        checkpoint=quote_glob(plan.complete_checkpoint),
        failures=shlex.quote(f"{export_input.out}/failures"),
        most=export_input.site.slurm.max_failures,
    )
    header = "\n".join(_directive(name, value) for name, value in options.items())
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
    return quote_words(["sbatch", f"{export_input.out}/job.sbatch"])


def _check_time(site: Site) -> None:
    """Refuse a time limit that leaves a job no time to train.

    The signal to save comes `grace` seconds before the limit. A job that gets it while it is still
    loading saves nothing, is requeued, and so on for ever.
    """
    if site.grace > MAX_SIGNAL_SECONDS:
        raise InvalidInput(
            key="grace",
            found=site.grace,
            rule=f"at most {MAX_SIGNAL_SECONDS} s, with which Slurm's `--signal` can come early",
            fix="lower it",
        )
    limits = {
        "slurm.time": site.slurm.time,
        "slurm.options.time-min": site.slurm.options.get("time-min"),
    }
    for key, time in limits.items():
        limit = time_limit(time) if time is not None else None
        if limit is not None and limit < 2 * site.grace:
            raise InvalidInput(
                key=key,
                found=time,
                rule=f"at least twice the `grace` of {site.grace} s in which a job saves before "
                "its time limit, so that it also has time to train",
                fix="raise the time, or lower `grace`",
            )


def _cpus_per_task(export_input: ExportInput, *, devices: int) -> int | None:
    """Return the CPUs of a task that has this number of devices, or None if nothing is stated."""
    per_gpu = export_input.site.slurm.cpus_per_gpu
    return None if per_gpu is None else per_gpu * devices


def _srun_words(site: Site, cpus_per_task: int | None) -> list[str]:
    """Return the srun with its options."""
    # With `--export=NONE` of sbatch, srun would start the processes without what this script sets.
    words = ["srun", "--kill-on-bad-exit=1", "--export=ALL"]
    if cpus_per_task is not None:
        # From Slurm 22.05 on, srun does not take it over from sbatch.
        words.append(f"--cpus-per-task={cpus_per_task}")
    return words + [
        f"--{name}={value}" if value else f"--{name}" for name, value in site.slurm.srun.items()
    ]


def _torchrun_per_node(export_input: ExportInput, plan: ExportPlan, srun: list[str]) -> str:
    nodes = export_input.bundle.target.hardware.nodes
    node_options = ["--nnodes", str(nodes), "--node-rank", ShellVariable("$SLURM_NODEID")]
    node_options += ["--master-addr", ShellVariable("$MASTER_ADDR")]
    node_options += ["--master-port", ShellVariable("$MASTER_PORT")]
    # No restarts by torchrun: the script requeues the job, which counts its failures.
    torchrun = torchrun_command(export_input, plan, node_options, max_restarts=0)
    inner = "exec " + option_lines([*export_input.site.slurm.wrapper, *torchrun])
    # The node's id is only known to the shell that srun starts there.
    return f"# shellcheck disable=SC2016\n{quote_words(srun)} bash -c {shlex.quote(inner)}"


def _sbatch_options(
    export_input: ExportInput, *, tasks_per_node: int, cpus_per_task: int | None
) -> dict[str, str]:
    """Return the options of sbatch; a flag has an empty value."""
    slurm, hardware = export_input.site.slurm, export_input.bundle.target.hardware
    given = dict(slurm.options)
    options = {"job-name": export_input.job_name, "nodes": str(hardware.nodes)}
    options["ntasks-per-node"] = str(tasks_per_node)
    options |= _gpu_option(export_input, given)
    if cpus_per_task is not None:
        options["cpus-per-task"] = str(cpus_per_task)
    for name in ("partition", "account", "qos", "time"):
        value = getattr(slurm, name)
        if value is not None:
            options[name] = value
    # In a file name, %% is a % that begins no replacement symbol.
    folder = str(export_input.out).replace("%", "%%")
    options["output"] = f"{folder}/slurm-%j.log"
    options |= {"open-mode": "append", "requeue": "", "signal": f"B:USR1@{export_input.site.grace}"}
    return options | given


def _gpu_option(export_input: ExportInput, given: dict[str, str]) -> dict[str, str]:
    """Take the GPUs out of the given options, check them, and return the option that asks for them.

    Raises:
        InvalidInput: Their number is not that of the target.
    """
    per_node = export_input.bundle.target.hardware.per_node if export_input.on_gpu else 0
    if "gpus-per-node" in given:
        counts = [entry.rpartition(":")[2] for entry in given["gpus-per-node"].split(",")]
        _check_gpus("gpus-per-node", given["gpus-per-node"], counts, per_node)
        return {"gpus-per-node": given.pop("gpus-per-node")}
    entries = given.pop("gres", "").split(",") if "gres" in given else []
    gpus = [entry.split(":") for entry in entries if entry.split(":")[0] == "gpu"]
    if gpus:
        # `gpu` and `gpu:a100` are one GPU.
        counts = [words[-1] if COUNT_PATTERN.fullmatch(words[-1]) else "1" for words in gpus]
        _check_gpus("gres", ",".join(entries), counts, per_node)
    elif per_node:
        entries.insert(0, f"gpu:{per_node}")
    return {"gres": ",".join(entries)} if entries else {}


def _check_gpus(name: str, value: str, counts: list[str], per_node: int) -> None:
    if not all(map(COUNT_PATTERN.fullmatch, counts)) or sum(map(int, counts)) != per_node:
        raise InvalidInput(
            key=f"slurm.options.{name}",
            found=value,
            rule=f"{per_node} GPUs per node, as the `hardware` of the target states",
            fix="correct the number, or promote to a target with other hardware",
        )


def _directive(name: str, value: str) -> str:
    """Return a line that sbatch reads as an option with exactly this value; a flag if it is empty.

    sbatch ends a value at white space and at #, removes quotes, and takes the character after a
    backslash as it is, inside quotes, too (`_get_argument` of src/sbatch/opt.c).
    """
    if not value:
        return f"#SBATCH --{name}"
    if not PLAIN_VALUE_PATTERN.fullmatch(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"
