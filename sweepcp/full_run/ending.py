"""Whose run a folder holds, and how the run ended: `run.json` and `ended.json`.

`run.json` is written before any other file of the run, and names the bundle. Nothing in the folder
is used for another bundle, however the run ended.

`ended.json` is written by the first rank before its process exits. Launchers restart what does
not exit with 0, so a restart reads this file first: a run that finished, diverged or was stopped by
an alarm ends again, in the same way and without training. Anything else is started again. A process
that was killed leaves no such file, and its run resumes.
"""

import logging
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from sweepcp.errors import Alarmed, Diverged, InvalidInput, Stopped
from sweepcp.runs.trial import numeric_versions
from sweepcp.util.files import write_json
from sweepcp.util.records import Record, read_record

if TYPE_CHECKING:
    from sweepcp.training.process_group import ProcessGroup

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What a scheduler sends before it takes a node away. The run saves a checkpoint and ends with exit
status 128 + signal."""
RUN_FILE = "run.json"
REMOVE_ENDING = "remove the file to resume from the last checkpoint"
FINISHED, FAILED, INVALID, DIVERGED = 0, 1, 2, 3
"""Exit statuses. 3 is also that of an alarm: another start would end in the same way."""
RUN_FILES = ("base.json", "ended.json", "metrics.jsonl", "items.json", "scorecard.json")
"""Files that are never in a folder without run.json, unless another program wrote them."""

logger = logging.getLogger(__name__)


class RunRecord(Record):
    """`run.json`: the bundle that the run belongs to."""

    format: Literal[1] = 1
    """Version of the format."""
    bundle: str
    """Id of the bundle."""
    versions: Annotated[tuple[dict[str, str], ...], Field(min_length=1)]
    """Versions of the packages that the numbers depend on: those that the run began with, and those
    of every start at which they had changed."""
    continued: tuple[int, ...] = ()
    """Steps of endings with status 3 that the user had the run continue after."""


class Ending(Record):
    """`ended.json`: how the last start of the run ended."""

    format: Literal[1] = 1
    """Version of the format."""
    bundle: str
    """Id of the bundle."""
    status: int
    """Exit status."""
    step: int | None
    """The step at which it ended; None before the first one."""
    reason: str
    """Why it ended, in words; `finished` if it is complete."""
    memory_gib: float | None = None
    """The most GPU memory in GiB that a rank allocated in a step of the last start, of a run that
    finished on GPUs."""
    estimated_memory_gib: float | None = None
    """The estimate of the same."""
    memory_ratio: float | None = None
    """The first in multiples of the second."""

    @property
    def memory_line(self) -> str:
        """Measured and estimated memory in words; empty unless they are recorded."""
        if None in (self.memory_gib, self.estimated_memory_gib, self.memory_ratio):
            return ""
        return (
            f"GPU memory: {self.memory_gib:.1f} GiB on the fullest GPU, {self.memory_ratio:.2f} "
            f"times the estimated {self.estimated_memory_gib:.1f} GiB"
        )


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a full run depend on."""
    return numeric_versions() | {"deepspeed": version("deepspeed")}


def exit_status(error: BaseException) -> int:
    """Return the exit status of a run that an exception ends."""
    if isinstance(error, Stopped):
        return 128 + error.signal
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, Diverged | Alarmed):
        return DIVERGED
    return INVALID if isinstance(error, InvalidInput) else FAILED


def check_on_first_rank(group: "ProcessGroup", check: Callable[[], None]) -> None:
    """Let the first rank check something, and end all ranks with its status if it refuses.

    A rank that waited for the first one would be killed by its launcher, whose exit status is then
    that of the kill, or would wait for ever under Ray.
    """
    refusal = None
    status = 0
    if group.is_first:
        try:
            check()
        except Exception as error:  # of any kind: the others have to end, too
            refusal, status = error, exit_status(error)
    status = int(group.all_reduce_sum(np.array([status], dtype=np.float64))[0])
    if status:
        raise refusal or SystemExit(status)


def is_owned(out: Path, bundle_id: str) -> bool:
    """Return whether a folder holds a run of the bundle: False where a run may begin.

    Raises:
        InvalidInput: The folder holds the run of another bundle, or files of an unknown one.
    """
    fix = "name another --out"
    if not (out / RUN_FILE).exists():
        for name in RUN_FILES:
            if (out / name).exists():
                raise InvalidInput(
                    file=out,
                    key=name,
                    found="a file of a run, without run.json",
                    rule="run.json, which states the bundle that the files belong to",
                    fix=f"{fix}, or restore run.json",
                )
        return False
    check_bundle(out / RUN_FILE, _read_record(out).bundle, bundle_id=bundle_id, fix=fix)
    return True


def read_final_ending(
    out: Path, bundle_id: str, *, continue_after: int | None = None
) -> Ending | None:
    """Return how the run of a folder ended, if a restart has to end in the same way.

    Args:
        out: The folder of the run.
        bundle_id: The bundle that is started.
        continue_after: The step of a status 3 that the user wants to be passed. It names one
            ending, which is passed once: a launcher that repeats the command passes no later one,
            not even one at the same step.

    Raises:
        InvalidInput: The folder, or the ending in it, belongs to another bundle.
    """
    path = out / "ended.json"
    if not is_owned(out, bundle_id) or not path.exists():
        return None
    ending = read_record(Ending, path, fix=REMOVE_ENDING)
    check_bundle(path, ending.bundle, bundle_id=bundle_id, fix=REMOVE_ENDING)
    if ending.status not in (FINISHED, DIVERGED):
        return None
    asks = continue_after is not None and ending.status == DIVERGED
    if asks and ending.step == continue_after and ending.step not in _read_record(out).continued:
        return None
    return ending


def claim_folder(out: Path, bundle_id: str) -> None:
    """Write run.json: from here on the folder is that of a run of the bundle."""
    record = RunRecord(bundle=bundle_id, versions=(package_versions(),))
    write_json(out / RUN_FILE, record.model_dump(mode="json"))


def begin_attempt(out: Path, bundle_id: str) -> None:
    """Prepare the folder for another start: remove the last ending and record changed versions.

    A run of weeks may outlive an upgrade, so other versions are recorded and reported, not refused.

    Raises:
        InvalidInput: The folder holds the run of another bundle.
    """
    if not is_owned(out, bundle_id):
        return
    record, now = _read_record(out), package_versions()
    if (out / "ended.json").exists():
        ending = read_record(Ending, out / "ended.json", fix=REMOVE_ENDING)
        if ending.status == DIVERGED and ending.step is not None:
            record = record.model_copy(update={"continued": (*record.continued, ending.step)})
    before = record.versions[-1]
    changed = [
        f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if changed:
        logger.warning("resuming with other versions: %s", ", ".join(changed))
        record = record.model_copy(update={"versions": (*record.versions, now)})
    write_json(out / RUN_FILE, record.model_dump(mode="json"))
    (out / "ended.json").unlink(missing_ok=True)


def _read_record(out: Path) -> RunRecord:
    fix = "restore the file from a backup, or name another --out"
    return read_record(RunRecord, out / RUN_FILE, fix=fix)


def record_ending(out: Path, ending: Ending) -> None:
    """Write ended.json, unless the run ended before the folder was its own."""
    if is_owned(out, ending.bundle):
        write_json(out / "ended.json", ending.model_dump(mode="json"))


def ending_of(error: BaseException, bundle_id: str, *, step: int | None) -> Ending:
    """Describe how an exception ends a run at a step."""
    if isinstance(error, Stopped):
        reason = f"stopped by {signal.Signals(error.signal).name}; the state was saved"
    elif isinstance(error, Diverged | Alarmed | InvalidInput):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {error}"
    if isinstance(error, Diverged) and error.step is not None:
        step = error.step
    return Ending(bundle=bundle_id, status=exit_status(error), step=step, reason=reason)


def check_bundle(path: Path, found: str, *, bundle_id: str, fix: str) -> None:
    """Raise `InvalidInput` unless a file states the id of the bundle that is started."""
    if found != bundle_id:
        raise InvalidInput(
            file=path,
            key="bundle",
            found=found[:16],
            rule=f"a run of this bundle ({bundle_id[:16]})",
            fix=fix,
        )
