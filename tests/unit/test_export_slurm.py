"""The exported Slurm script, run by bash with commands of Slurm that only record their calls."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sweepcp.config.site import Site
from sweepcp.config.slurm import Slurm
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput
from sweepcp.util.files import write_json
from tests.exports import promoted_short, rendered

COMMANDS = {
    "srun": 'echo srun >>"$CALLS"\neval "$SRUN"',
    "scontrol": 'echo "scontrol $1" >>"$CALLS"\necho "$JOB"',
    "scancel": 'echo scancel >>"$CALLS"\ntouch "$CALLS.cancelled"',
}
RUNNING = "JobState=RUNNING PreemptTime=None"
UNTIL_CANCELLED = 'until [ -e "$CALLS.cancelled" ]; do sleep 0.02; done; exit '


class Job:
    """An exported job in a folder of its own."""

    def __init__(
        self,
        loaded,
        folder: Path,
        trainer: str = "deepspeed",
        out: Path | None = None,
        site: Site = Site(slurm=Slurm(max_failures=2)),  # noqa: B008
    ) -> None:
        self.out = out or folder / "out"
        self.script = rendered(ExportInput(loaded, site, self.out), trainer, "slurm")["job.sbatch"]
        (folder / "bin").mkdir()
        for name, body in COMMANDS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "job.sbatch").write_text(self.script)
        self.calls = folder / "calls"
        self.env = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
        }

    def start(self, srun: str, job: str = RUNNING) -> subprocess.Popen[str]:
        self.calls.write_text("")
        Path(f"{self.calls}.cancelled").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", str(self.out / "job.sbatch")],
            env=self.env | {"SRUN": srun, "JOB": job},
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, srun: int | str, job: str = RUNNING) -> tuple[int, bool]:
        """The exit status of the script, and whether it requeued the job.

        Args:
            srun: The exit status of srun, or what it does.
            job: What Slurm says about the job.
        """
        process = self.start(f"exit {srun}" if isinstance(srun, int) else srun, job)
        process.communicate(timeout=20)
        return process.returncode, self.requeued

    def signal(
        self, srun: str, number: int = signal.SIGUSR1, job: str = RUNNING
    ) -> tuple[int, bool]:
        """As `run`, with a signal to the script once srun has begun."""
        process = self.start(srun, job)
        while "srun" not in self.calls.read_text():
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert "scancel" in self.calls.read_text()
        return process.returncode, self.requeued

    def save(self) -> str:
        """The command of bash that completes a checkpoint."""
        (file,) = re.findall(r"find (\S+) -newer", self.script)
        path = Path(file.replace("*", "5"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"sleep 0.02; touch {path}; "

    @property
    def requeued(self) -> bool:
        return "scontrol requeue" in self.calls.read_text()

    @property
    def failures(self) -> int:
        path = self.out / "failures"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def record(self, status: int) -> str:
        """Write ended.json; returns the same as a command of bash."""
        path = self.out / "run" / "ended.json"
        write_json(path, {"format": 1, "bundle": "b", "status": status, "step": 3, "reason": "r"})
        return f"touch {path}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    return promoted_short(tmp_path_factory.mktemp("slurm") / "bundle")


@pytest.fixture
def job(loaded, tmp_path: Path) -> Job:
    return Job(loaded, tmp_path)


@pytest.mark.parametrize("status", [0, 2, 3])
def test_final_statuses_end_the_job(job, status):
    assert job.run(status) == (status, False)
    assert job.failures == 0


def test_signals_of_the_scheduler_requeue_however_often(job):
    for status in (138, 140) * 2:
        assert job.run(status) == (0, True)
    assert job.failures == 0


@pytest.mark.parametrize("status", [1, 4, 127, 134, 135, 136, 137, 139, 143, 255])
def test_other_statuses_requeue_so_many_times_and_then_end_the_job(job, status):
    assert [job.run(status) for _ in range(4)] == [(0, True)] * 2 + [(status, False)] * 2


@pytest.mark.parametrize(
    ("trainer", "folder", "file", "incomplete"),
    [
        ("deepspeed", "run/checkpoints/step-00000005", "manifest.json", "rank-00000.safetensors"),
        ("hf-trainer", "run/checkpoint-5", "trainer_state.json", "optimizer.pt"),
        ("torchtitan", "run/checkpoint/step-5", ".metadata", "__0_0.distcp"),
        ("megatron-lm", "run", "latest_checkpointed_iteration.txt", "progress.txt"),
    ],
)
def test_a_complete_checkpoint_begins_the_count_again(
    loaded, tmp_path, trainer, folder, file, incomplete
):
    job = Job(loaded, tmp_path, trainer)
    assert [job.run(139) for _ in range(3)] == [(0, True), (0, True), (139, False)]
    checkpoint = job.out / folder
    checkpoint.mkdir(parents=True)
    (checkpoint / incomplete).touch()
    assert job.run(139) == (139, False)
    time.sleep(0.02)  # longer than a tick of the clock that stamps files
    (checkpoint / file).touch()
    assert [job.run(139) for _ in range(3)] == [(0, True), (0, True), (139, False)]


def test_a_failure_in_preemption_is_none(job):
    for _ in range(4):
        assert job.run(1, "JobState=RUNNING PreemptTime=2026-11-26T12:00:00") == (0, True)
    assert job.failures == 0


@pytest.mark.parametrize("status", [1, 139, 143])
def test_a_cancelled_job_is_not_requeued(job, status):
    """Slurm 22.05 shows COMPLETING while the script of a cancelled job runs."""
    for state in ("CANCELLED", "COMPLETING"):
        job_line = f"JobState={state} PreemptTime=None"
        assert job.run(status, job_line) == (status, False)
        srun = f"{UNTIL_CANCELLED}{status}"
        assert job.signal(srun, signal.SIGTERM, job_line) == (status, False)
        # A job that is over its time limit while it saves is in the same state.
        assert job.signal(srun, signal.SIGUSR1, job_line)[1]
        (job.out / "failures").unlink()
        preempted = job_line.replace("None", "2026-11-26T12:00:00")
        assert job.run(status, preempted) == (0, True)


@pytest.mark.parametrize("trainer", ["deepspeed", "hf-trainer"])
@pytest.mark.parametrize("status", [0, 1, 137, 143])
def test_near_the_time_limit_the_job_saves_and_is_requeued(loaded, tmp_path, trainer, status):
    """Trainers that save on SIGTERM may end with 0 although they have not finished."""
    job = Job(loaded, tmp_path, trainer)
    finished = trainer == "deepspeed" and status == 0
    for _ in range(4):
        assert job.signal(f"{job.save()}{UNTIL_CANCELLED}{status}") == (0, not finished)
    assert job.failures == 0


def test_a_job_that_saves_nothing_before_its_time_limit_is_not_requeued_for_ever(job):
    """Also where the limit is that of the partition, which the export does not know."""
    ends = [job.signal(f"{UNTIL_CANCELLED}143") for _ in range(3)]
    assert ends == [(0, True), (0, True), (143, False)]


def test_preemption_requeues_also_without_a_checkpoint(job):
    for _ in range(4):
        assert job.signal(f"{UNTIL_CANCELLED}143", signal.SIGTERM) == (0, True)
    assert job.failures == 0


@pytest.mark.parametrize("srun", [1, 9, 137, 143])
def test_a_final_ending_counts_more_than_the_status_of_srun(job, srun):
    """srun reports the highest status, for example of a process that it killed after another."""
    job.record(3)
    assert job.run(srun) == (3, False)
    assert job.signal(f"{UNTIL_CANCELLED}{srun}") == (3, False)
    job.record(0)
    assert job.run(srun) == (0, False)


def test_another_ending_counts_only_if_it_is_of_this_job(job):
    touch = job.record(143)
    assert job.run(f"sleep 0.02; {touch}; exit 137") == (0, True)
    assert job.failures == 0
    assert job.run(137) == (0, True)
    assert job.failures == 1
    touch = job.record(2)
    assert job.run(f"sleep 0.02; {touch}; exit 137") == (2, False)
    touch = job.record(1)
    assert job.run(f"sleep 0.02; {touch}; exit 137") == (0, True)
    assert job.failures == 2


def test_statuses_of_other_trainers_are_unknown(loaded, tmp_path):
    job = Job(loaded, tmp_path, "hf-trainer")
    job.record(3)
    assert job.run(3) == (0, True)
    assert job.run(2) == (0, True)
    assert job.run(2) == (2, False)


@pytest.mark.parametrize(
    ("limit", "grace", "fits"),
    [
        ("00:05:00", 600, False),
        ("00:19:59", 600, False),
        ("00:20:00", 600, True),
        ("0-00:20:00", 600, True),
        ("1-00:00:00", 43_200, True),
        ("1-00:00:00", 43_201, False),
        ("24:00:00", 43_200, True),
        ("00:01:00", 30, True),
        (None, 600, True),
    ],
)
def test_a_time_limit_that_leaves_no_time_beside_the_grace_is_refused(
    loaded, tmp_path, limit, grace, fits
):
    """The signal of a time limit of 300 s and a grace of 600 s comes at once, for ever."""
    export_input = ExportInput(loaded, Site(grace=grace, slurm=Slurm(time=limit)), tmp_path / "out")
    if fits:
        script = rendered(export_input, "slurm")["job.sbatch"]
        assert f"--signal=B:USR1@{grace}" in script
        return
    with pytest.raises(InvalidInput, match=r"slurm\.time"):
        rendered(export_input, "slurm")
