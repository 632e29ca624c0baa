"""Compare a search by sweepcp with one by other means, and with itself less one lever at a time.

    benchmarks/compare [--rounds 3] [--trials 16] [--arms ARM ...] [--before CHECKOUT]
                       [--json FILE] [--markdown FILE]
    benchmarks/compare --list                          the arms
    benchmarks/compare --tiny                          small searches: a rehearsal

All arms search the quickstart: the same base, tokens, held-out text and lm-eval items, two trials
at a time on two cores, one thread each. What a second search has is prepared first: token stores,
base and its scores. Then the arms run in turn, round after round; a time is that of the whole
command, a ratio is one within a round, and the tables show medians and ranges. A round of all arms
takes about ten minutes.

At last a trial of each arm is chosen by the same rule, trained again, and scored by stock lm-eval.
With `--before`, short searches by another checkout must have the same scores. The exit status is 1
if a goal is not met.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import add_output_options, describe_machine, finish

from compare_parts import report
from compare_parts.arms import (
    CONCURRENCY,
    EXPERIMENT,
    Arm,
    Search,
    Work,
    all_arms,
    run_command,
    search_arguments,
)
from compare_parts.before import check_against

TINY = (
    *("budget.tokens=4_096", "base.pretrain.tokens=40_960"),
    *(f"suites.{role}.{member}.items=20" for role in ("domain", "general") for member in (1, 2)),
)
"""Overrides for trials of a second."""


def prepare(work: Work) -> None:
    """Build what all arms share: stores, base, the base's scores in both modes, and inputs."""
    for mode in ("shared", "exact"):
        out = work.folder / f"prepare-{mode}"
        shutil.rmtree(out, ignore_errors=True)
        arguments = [*search_arguments(work, out, 1), "--set", f"suites.scoring={mode}"]
        command = [sys.executable, "-m", "sweepcp", *arguments]
        run_command(command, work.environment(), out.with_suffix(".log"))
    shutil.rmtree(work.inputs, ignore_errors=True)
    work.inputs.mkdir()
    module = [sys.executable, "-m", "compare_parts.inputs"]
    command = [*module, str(work.inputs), EXPERIMENT, *work.overrides]
    run_command(command, work.environment(), work.folder / "inputs.log")


def run_round(work: Work, arms: Sequence[Arm], number: int) -> dict[str, Search]:
    """Run every arm once, and print what it took."""
    searches = {}
    for arm in arms:
        folder = work.folder / f"round-{number}" / arm.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        search = arm.run(work, folder / "out")
        searches[arm.name] = search
        print(
            f"round {number}, {arm.name}: {search.wall_seconds:.1f} s, first trial after "
            f"{search.first_seconds:.1f} s, {search.trial_seconds:.2f} s per trial",
            file=sys.stderr,
            flush=True,
        )
    return searches


def score_choices(work: Work, searches: dict[str, Search]) -> dict[str, Any]:
    """Choose a trial of each arm and score it by stock lm-eval."""
    given, out = work.folder / "searches.json", work.folder / "choices.json"
    given.write_text(json.dumps({name: asdict(search) for name, search in searches.items()}))
    module = [sys.executable, "-m", "compare_parts.final_choice"]
    command = [*module, str(work.inputs), str(given), str(out)]
    run_command(command, work.environment(), work.folder / "choices.log")
    return dict(json.loads(out.read_text()))


def compare(work: Work, arms: Sequence[Arm], asked: argparse.Namespace) -> int:
    """Run the comparison and return the exit status."""
    started = time.monotonic()
    machine = describe_machine()
    prepare(work)
    rounds = [run_round(work, arms, number) for number in range(1, asked.rounds + 1)]
    choices = score_choices(work, rounds[-1])
    check = check_against(asked.before.resolve(), work) if asked.before else None
    parts = [
        f"Rounds: {asked.rounds}, interleaved; trials per search: {asked.trials}; median (range).",
        report.arms_table(arms, rounds),
    ]
    if "ours" in rounds[0] and len(arms) > 1:
        parts.append(report.ratios_table(arms, rounds))
    parts.append(report.choices_table(choices))
    if check is not None:
        parts.append(report.before_table(check))
    results = {
        "trials": asked.trials,
        "overrides": work.overrides,
        "rounds": [
            {name: asdict(search) for name, search in searches.items()} for searches in rounds
        ],
        "choices": choices,
        "before": check,
        "seconds": time.monotonic() - started,
    }
    goals = report.goals_of(rounds, choices, check)
    return finish(
        asked,
        machine=machine,
        results=results,
        text="\n\n".join(part.strip() for part in parts),
        goals=goals,
    )


def main() -> None:
    """Run the comparison that the command line asks for."""
    arms = all_arms()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm runs")
    parser.add_argument("--trials", type=int, default=16, help="trials of a search")
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms), metavar="ARM")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare scores with it")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keep logs, runs and what is prepared there, for the next time",
    )
    parser.add_argument("--list", action="store_true", help="list the arms")
    parser.add_argument("--tiny", action="store_true", help="small trials and suites")
    add_output_options(parser)
    asked = parser.parse_args()
    if asked.list:
        for arm in arms.values():
            print(f"{arm.name:<12}{arm.description}")
        return
    if asked.trials <= CONCURRENCY:
        parser.error(f"--trials must be above {CONCURRENCY}, the trials that run at a time")
    keep_two_cores()
    with tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as temporary:
        folder = (asked.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        overrides = TINY if asked.tiny else ()
        work = Work(folder, overrides, asked.trials)
        chosen = [arm for arm in arms.values() if arm.name in asked.arms]
        status = compare(work, chosen, asked)
    sys.exit(status)


def keep_two_cores() -> None:
    """Restrict this process and its children to as many cores as trials run at a time."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CONCURRENCY:
        sys.exit(f"{CONCURRENCY} cores are needed; this process may use {len(cores)}")
    os.sched_setaffinity(0, cores[:CONCURRENCY])
