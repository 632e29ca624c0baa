"""Opening run folders: of trials with as many members, items and steps as the quickstart's."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from measuring import ROOT, spread_of

from scale_parts.growth import Growth
from scale_parts.instant import quickstart_items
from sweepcp.runs.run_folder import RunIdentity, RunWriter
from sweepcp.runs.trial import BaseRecord, TrialOutcome, id_of_trial
from sweepcp.scoring.scorecard import compare_with_base
from tests.make import experiment
from tests.make_run import point_of_trial, step_rows, trial_record

SIZES = (10, 100, 1000, 5000)
REPEATS = 3
STEPS = 100
TIME_READING = """
import sys, time
from sweepcp.runs.run_folder import read_run
started = time.perf_counter()
run = read_run(sys.argv[1])
assert run.front.ids
print(time.perf_counter() - started)
"""


def write_large_run(folder: Path, trials: int) -> None:
    """Write a run of one trial by hand, and copy it under other numbers with other scores."""
    searched = experiment(f"budget.trials={trials}")
    base = quickstart_items(domain=0.0, general=0.0)
    writer = RunWriter(folder)
    writer.start(searched, RunIdentity())
    writer.write_base(
        BaseRecord(
            model="a base",
            parameters=111_040,
            max_lr=3e-3,
            items=base,
            environment={"device": "cpu", "precision": "fp32"},
            versions={"torch": "2"},
        )
    )
    rng = np.random.default_rng(3)
    items = quickstart_items(domain=5.0, general=-1.0)
    card = compare_with_base(trial=list(items), base=list(base))
    record = trial_record(searched, 0, point_of_trial(searched, 0, rng), steps=STEPS)
    scores = {"domain": card.select.domain, "general": card.select.general}
    record = record.model_copy(update={"scorecard": card, **scores})
    writer.append_metrics(record.id, step_rows(record.recipe, STEPS))
    writer.write_trial(record, TrialOutcome(status="done", items=items))
    first = folder / "trials" / record.id
    content = json.loads((first / "trial.json").read_text())
    for number in range(1, trials):
        other = first.with_name(id_of_trial(number))
        shutil.copytree(first, other)
        domain, general = rng.normal((0.0, 0.0), (5.0, 2.0)).tolist()
        content |= {"id": other.name, "number": number, "domain": domain, "general": general}
        content["scorecard"]["select"] |= {"domain": domain, "general": general}
        (other / "trial.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))


def measure_opening(folder: Path, largest: int) -> list[Growth]:
    """Measure `read_run`, and the whole command `sweepcp front`, in processes of their own."""
    sizes = tuple(size for size in SIZES if size <= largest)
    reading, command = [], []
    for size in sizes:
        run = folder / f"run-{size}"
        write_large_run(run, size)
        reading.append(spread_of(_seconds_of_reading(run) for _ in range(REPEATS)).median)
        command.append(spread_of(_seconds_of_front(run) for _ in range(REPEATS)).median)
        shutil.rmtree(run)
    return [
        Growth("trials", "read_run and its front", "s", sizes, tuple(reading)),
        Growth("trials", "`sweepcp front RUN`", "s", sizes, tuple(command)),
    ]


def _seconds_of_reading(run: Path) -> float:
    command = [sys.executable, "-c", TIME_READING, str(run)]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def _seconds_of_front(run: Path) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "sweepcp", "front", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started
