"""The arms of the comparison: the command of each, and what it leaves behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXPERIMENT = "quickstart"
CONCURRENCY = 2
GENERATED = ("cloze_", "swap_")
"""How the names of the lm-eval tasks begin, which are generated from held-out text."""
PARTS = Path(__file__).parent
ROOT = PARTS.parents[1]


@dataclass(frozen=True)
class Work:
    """Where a comparison happens, and the size of its searches."""

    folder: Path
    overrides: tuple[str, ...]
    """Of the quickstart; none but in a rehearsal."""
    trials: int

    @property
    def inputs(self) -> Path:
        """Folder of the inputs of `plain` and `optuna`."""
        return self.folder / "inputs"

    @property
    def cache(self) -> Path:
        """The cache of sweepcp."""
        return self.folder / "cache"

    def environment(self, levers: Sequence[str] = (), checkout: Path = ROOT) -> dict[str, str]:
        """Return the environment of a command.

        Args:
            levers: What is switched off in all its processes; see `compare_parts.levers`.
            checkout: The checkout of sweepcp that runs.
        """
        paths = [*([PARTS / "patched"] if levers else []), PARTS.parent, checkout]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SWEEPCP", "RAY_"))}
        return inherited | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "COMPARE_LEVERS": " ".join(levers),
            "SWEEPCP_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": "local",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "COLUMNS": "120",
        }


@dataclass(frozen=True)
class FinishedTrial:
    """A trial of a search that was timed."""

    point: dict[str, float]
    domain_bpb: float
    """Bits per byte of the held-out text of the domain."""
    general_bpb: float
    accuracies: dict[str, float]
    """Task → accuracy on all items."""
    train_seconds: float
    score_seconds: float
    finished: float
    """Seconds from the start of the command to the end of the trial."""
    folder: str | None = None
    """Its folder in a run of sweepcp."""
    gold_bits: dict[str, list[float]] = field(default_factory=dict)
    """Task → bits of the right answer of each item, where the arm records them."""


@dataclass(frozen=True)
class Search:
    """A search of an arm in one round."""

    wall_seconds: float
    """From the command's start to its end."""
    trials: tuple[FinishedTrial, ...]
    """In the order in which they finished."""

    @property
    def first_seconds(self) -> float:
        """Seconds from the command's start to the first finished trial."""
        return self.trials[0].finished

    @property
    def trial_seconds(self) -> float:
        """Seconds per trial in steady state: after the first quarter of the trials."""
        skipped = max(CONCURRENCY, len(self.trials) // 4)
        first, last = self.trials[skipped - 1], self.trials[-1]
        return (last.finished - first.finished) / (len(self.trials) - skipped)


@dataclass(frozen=True)
class Arm:
    """A way to run the search."""

    name: str
    description: str
    module: str = "sweepcp"
    """What `python -m` runs."""
    options: tuple[str, ...] = ()
    levers: tuple[str, ...] = ()
    """What is switched off in its processes; see `compare_parts.levers`."""
    forgets_base_scores: bool = False
    """Whether it has no cached scores of the base."""

    @property
    def is_ours(self) -> bool:
        """Whether sweepcp runs it."""
        return self.module == "sweepcp"

    def command(self, work: Work, out: Path) -> list[str]:
        """Return the command of a search that writes to `out`."""
        python = [sys.executable, "-m", self.module]
        if not self.is_ours:
            return [*python, str(work.inputs), str(work.trials), str(out), *self.options]
        return [*python, *search_arguments(work, out, work.trials), *self.options]

    def run(self, work: Work, out: Path) -> Search:
        """Run a search of this arm, and return what it took; exit if it fails."""
        with without_base_scores(work) if self.forgets_base_scores else nullcontext():
            environment = work.environment(self.levers)
            started = time.time()
            run_command(self.command(work, out), environment, out.with_suffix(".log"))
            wall = time.time() - started
        read = read_run if self.is_ours else read_results
        trials = sorted(read(out, started), key=lambda trial: trial.finished)
        return Search(wall, tuple(trials))


@contextmanager
def without_base_scores(work: Work) -> Iterator[None]:
    """Hide the cached scores of the base from a search."""
    scores, hidden = work.cache / "base_scores", work.cache / "base_scores.hidden"
    scores.rename(hidden)
    try:
        yield
    finally:
        shutil.rmtree(scores, ignore_errors=True)
        hidden.rename(scores)


def search_arguments(work: Work, out: Path, trials: int) -> list[str]:
    """Return the arguments of `sweepcp` for a search."""
    options = [word for text in work.overrides for word in ("--set", text)]
    size = ["--trials", str(trials), "--set", f"budget.concurrency={CONCURRENCY}"]
    return ["search", EXPERIMENT, "--out", str(out), *size, *options]


def run_command(command: Sequence[str], environment: dict[str, str], log: Path) -> None:
    """Run a command in the folder of its log, and exit with the log's end if it fails."""
    with log.open("w") as output:
        done = subprocess.run(
            command,
            cwd=log.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        sys.exit(f"status {done.returncode} of {' '.join(command)}\n{end}\n(the log is {log})")


def read_results(out: Path, started: float) -> list[FinishedTrial]:
    """Read what the arms `plain` and `optuna` write."""
    return [read_result(result, started) for result in json.loads(out.read_text())]


def read_result(result: dict[str, Any], started: float) -> FinishedTrial:
    """Return a trial of the arms `plain` and `optuna`."""
    tasks = [key for key in result if key.startswith(GENERATED)]
    return FinishedTrial(
        point={key: result[key] for key in ("lr_fraction", "domain_share")},
        domain_bpb=result["domain_bpb"],
        general_bpb=result["general_bpb"],
        accuracies={task: result[task] for task in tasks},
        train_seconds=result["train_seconds"],
        score_seconds=result["score_seconds"],
        finished=result["finished"] - started,
    )


def read_run(out: Path, started: float) -> list[FinishedTrial]:
    """Read the trials of a run folder; a trial is finished when its `trial.json` is written."""
    return [read_trial(file.parent, started) for file in sorted(out.glob("trials/*/trial.json"))]


def read_trial(folder: Path, started: float) -> FinishedTrial:
    """Read a trial of a run folder."""
    trial = json.loads((folder / "trial.json").read_text())
    if trial["status"] != "done":
        sys.exit(f"{folder} has no scores: {trial['status']}, {trial['reason']}")
    members = json.loads((folder / "items.json").read_text())["members"]
    bpb, accuracies, gold_bits = {}, {}, {}
    for member in members:
        value = sum(member["amount"]) / sum(member["size"])
        if member["unit"] == "accuracy":
            accuracies[member["name"]] = value
        elif member["name"].startswith(GENERATED):
            gold_bits[member["name"]] = member["amount"]
        else:
            bpb[member["role"]] = value
    return FinishedTrial(
        point=trial["point"],
        domain_bpb=bpb["domain"],
        general_bpb=bpb["general"],
        accuracies=accuracies,
        train_seconds=trial["cost"]["train_seconds"],
        score_seconds=trial["cost"]["score_seconds"],
        finished=(folder / "trial.json").stat().st_mtime - started,
        folder=str(folder),
        gold_bits=gold_bits,
    )


def all_arms() -> dict[str, Arm]:
    """Return the arms by name, in the order in which a round runs them."""
    exact = ("--set", "suites.scoring=exact")
    arms = [
        Arm("plain", "Ray Tune, OptunaSearch, Trainer, `simple_evaluate`", "compare_parts.plain"),
        Arm("plain-warm", "`plain` with `reuse_actors=True`", "compare_parts.plain", ("--warm",)),
        Arm("optuna", "Optuna's ask and tell in two processes", "compare_parts.ask_and_tell"),
        Arm("ours", "`sweepcp search`"),
        Arm("exact", "shared contexts off (`suites.scoring=exact`)", options=exact),
        Arm("stock", "`simple_evaluate` in every trial", options=exact, levers=("stock",)),
        Arm("imports", "every worker imports its libraries by itself", levers=("imports",)),
        Arm("cold", "a new process for every trial", levers=("cold",)),
        Arm("trainer", "HF Trainer instead of the training loop", levers=("trainer",)),
        Arm("base", "no cached scores of the base", forgets_base_scores=True),
        Arm(
            "none",
            "all levers off",
            options=exact,
            levers=("stock", "imports", "cold", "trainer"),
            forgets_base_scores=True,
        ),
    ]
    return {arm.name: arm for arm in arms}
