"""Section `slurm` of a site file: what sbatch and srun of a cluster require."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from sweepcp.config.safe_text import (
    IntegerAsText,
    SecretFound,
    Text,
    TextOrInteger,
    integer_as_text,
    is_secret,
    matches_text,
    valid_text,
)
from sweepcp.config.shell_lines import ShellLines
from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel

NAMES_PATTERN = re.compile(
    r"(?=.{1,1024}$)[A-Za-z0-9_][A-Za-z0-9_.@:+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@:+-]*)*"
)
OPTION_PATTERN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
UNLIMITED = ("0", "UNLIMITED", "INFINITE")
TIME_PATTERN = re.compile(
    r"(?:(?P<days>[0-9]{1,9})-)?(?P<first>[0-9]{1,9})"
    r"(?::(?P<second>[0-9]{1,9})(?::(?P<third>[0-9]{1,9}))?)?"
)
TIME_RULE = "a time as Slurm writes it, such as 7-00:00:00, 24:00:00 or 90 (minutes)"
MAX_OPTION = 1024
"""Characters of most options: slurmctld refuses a job whose comment, features and so on are longer
(`_test_strlen` in src/slurmctld/job_mgr.c)."""
LONG_OPTIONS = ("nodelist", "exclude", "dependency", "output", "error", "input", "chdir")
"""Options with a limit of their own, above that of all text here."""
FROM_HARDWARE = "the `hardware` of the target"
SET_BY_EXPORT = {
    "job-name": "`job`",
    "partition": "`slurm.partition`",
    "account": "`slurm.account`",
    "qos": "`slurm.qos`",
    "time": "`slurm.time`",
    "cpus-per-task": "`slurm.cpus_per_gpu`",
    "cpus-per-gpu": "`slurm.cpus_per_gpu`",
    "nodes": FROM_HARDWARE,
    "ntasks": FROM_HARDWARE,
    "ntasks-per-node": FROM_HARDWARE,
    "tasks-per-node": FROM_HARDWARE,
    "ntasks-per-core": FROM_HARDWARE,
    "ntasks-per-gpu": FROM_HARDWARE,
    "ntasks-per-socket": FROM_HARDWARE,
    "gpus": f"{FROM_HARDWARE}; `gres` or `gpus-per-node` names their type",
    "gpus-per-task": f"{FROM_HARDWARE}; `gres` or `gpus-per-node` names their type",
    "gpus-per-socket": f"{FROM_HARDWARE}; `gres` or `gpus-per-node` names their type",
    "signal": "`grace`",
    "requeue": "`slurm.max_failures`",
    "no-requeue": "`slurm.max_failures`",
    "open-mode": "nothing: a job that is requeued always appends to its log",
    "array": "nothing: a full run is one job, and the tasks of an array would all write to it",
    "wrap": "nothing: the exported script is what runs",
    "test-only": "an option on sbatch's command line",
    "wait": "an option on sbatch's command line",
    "parsable": "an option on sbatch's command line",
    "help": "an option on sbatch's command line",
    "usage": "an option on sbatch's command line",
    "version": "an option on sbatch's command line",
}
"""Option of sbatch that the export sets, or that a job cannot have → what is meant instead."""
SET_BY_START = {
    "nodes": FROM_HARDWARE,
    "ntasks": FROM_HARDWARE,
    "ntasks-per-node": FROM_HARDWARE,
    "cpus-per-task": "`slurm.cpus_per_gpu`",
    "kill-on-bad-exit": "nothing: it is always on, because the script requeues the job",
    "export": "`env` and `setup`",
    "multi-prog": "nothing: all processes run the same program",
    "pty": "nothing: a job has no terminal",
}
"""As `SET_BY_EXPORT`, for srun."""
EXCLUSIVE = (
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("gres", "gpus-per-node"),
    ("core-spec", "thread-spec"),
    ("hint", "threads-per-core", "extra-node-info"),
    ("exclusive", "oversubscribe"),
)
"""Options of which a job may have one, as the manual of sbatch states."""


def is_time(text: str) -> bool:
    """Return whether a text is a time limit in one of the forms of `time_limit`."""
    return text.upper() in UNLIMITED or TIME_PATTERN.fullmatch(text) is not None


def time_limit(time: str) -> int | None:
    """Return the seconds of a time limit of Slurm, or None if it sets no limit.

    The forms are those of sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds,
    days-hours, days-hours:minutes and days-hours:minutes:seconds.
    """
    if time.upper() in UNLIMITED:
        return None
    match = TIME_PATTERN.fullmatch(time)
    assert match is not None, time
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return ((int(match["days"]) * 24 + first) * 60 + second) * 60 + third
    if match["third"] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def _flag_or_text(value: Any) -> Any:
    if value is True:
        return ""
    if value is False:
        raise ValueError("true, for an option without a value; fix: remove the option")
    if value in ("", None):
        raise ValueError("a value, or true for an option without one; fix: add it")
    return integer_as_text(value)


SlurmTime = Annotated[
    str,
    IntegerAsText,
    TextOrInteger,
    valid_text(is_time, f"{TIME_RULE}; fix: correct it"),
]
SlurmNames = Annotated[
    str,
    IntegerAsText,
    TextOrInteger,
    matches_text(
        NAMES_PATTERN, "a name of letters, digits and `_.@:+-`, or several, joined by commas"
    ),
]
OptionName = Annotated[
    str,
    matches_text(OPTION_PATTERN, "the long name of an option, without `--`, such as mem-per-gpu"),
]
OptionValue = Annotated[
    Text,
    BeforeValidator(_flag_or_text),
    WithJsonSchema({"type": ["string", "integer", "boolean"]}),
]
"""Empty for a flag."""


def _check_batch_options(options: dict[str, str]) -> dict[str, str]:
    _refuse_reserved(options, SET_BY_EXPORT)
    for names in EXCLUSIVE:
        if len(given := [name for name in names if name in options]) > 1:
            both = " and ".join(f"`{name}`" for name in given)
            raise ValueError(f"{both} exclude each other in Slurm; fix: remove one")
    for name, value in options.items():
        if len(value) > MAX_OPTION and name not in LONG_OPTIONS:
            rule = f"at most {MAX_OPTION:,} characters of `{name}`, as Slurm takes"
            raise ValueError(f"{rule}; fix: shorten it")
    for entry in options.get("export", "").split(","):
        name, _, value = entry.partition("=")
        if is_secret(name, value):
            rule = f"{name} of `export` is a secret by its name"
            raise SecretFound(f"{rule}; fix: name it under `secrets`, without its value")
    if "time-min" in options and not is_time(options["time-min"]):
        raise ValueError(f"`time-min`: {TIME_RULE}; fix: correct it")
    return options


def _check_start_options(options: dict[str, str]) -> dict[str, str]:
    _refuse_reserved(options, SET_BY_START)
    return options


def _refuse_reserved(options: dict[str, str], reserved: dict[str, str]) -> None:
    for name in options:
        if name in reserved:
            raise ValueError(
                f"`{name}` is set by the export; what is meant is {reserved[name]}; "
                "fix: remove it here"
            )
        # Slurm takes an abbreviation for the option that begins with it.
        if full := [other for other in reserved if other.startswith(name)]:
            raise ValueError(f"the whole name of an option, not `{name}`; fix: write `{full[0]}`")


BatchOptions = Annotated[dict[OptionName, OptionValue], AfterValidator(_check_batch_options)]
StartOptions = Annotated[dict[OptionName, OptionValue], AfterValidator(_check_start_options)]


class Slurm(ConfigModel):
    """Settings of jobs on a Slurm cluster."""

    partition: SlurmNames | None = None
    """As `--partition` of sbatch: one, or several with commas."""
    account: SlurmNames | None = None
    """As `--account` of sbatch."""
    qos: SlurmNames | None = None
    """As `--qos` of sbatch."""
    time: SlurmTime | None = None
    """As `--time` of sbatch, at least twice `grace`."""
    cpus_per_gpu: PositiveInt | None = None
    """CPUs per GPU; per process if the target trains on CPUs."""
    options: BatchOptions = Field(default_factory=dict)
    """Other options of sbatch by their long names, such as `constraint: a100`, `mem: 0`,
    `gres: gpu:a100:8` or `exclusive: true`; true is for options without a value.

    Values are literal, as in every line of a script that begins with #SBATCH. In `output` and
    `error`, sbatch itself replaces `%j`, `%x` and the like."""
    srun: StartOptions = Field(default_factory=dict)
    """Options of the srun that starts the processes, such as `cpu-bind: none`, or the
    `container-image` and `container-mounts` of pyxis."""
    wrapper: tuple[Text, ...] = ()
    """Words before the command of every process, such as
    `[apptainer, exec, --nv, /shared/train.sif]`."""
    setup: ShellLines = ()
    """Shell code that the job runs on its first node before it starts the processes, such as
    `module load cuda` or `source /shared/venv/bin/activate`. srun hands the environment that it
    leaves to the processes on all nodes.

    It stands in the script as it is written, and runs without `set -e` and `set -u`: a line that
    must succeed ends in `|| exit 1`."""
    max_failures: PositiveInt = 10
    """Failures, without a complete checkpoint in between, after which a job is not requeued again;
    preemption and time limits do not count."""
