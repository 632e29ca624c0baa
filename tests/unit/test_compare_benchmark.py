"""`benchmarks/compare` and what benchmarks share: steady state, ratios, the choice, the goals."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("measuring", "compare_parts")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in PARTS]:
        del sys.modules[name]


def part(name: str) -> ModuleType:
    return import_module(f"compare_parts.{name}")


def search(*finished: float, wall: float = 100.0, **changes: Any) -> Any:
    arms = part("arms")
    values = {
        "point": {"lr_fraction": 0.1},
        "domain_bpb": 2.0,
        "general_bpb": 2.0,
        "accuracies": {"cloze_a": 0.5},
        "train_seconds": 2.0,
        "score_seconds": 1.0,
    }
    trials = [arms.FinishedTrial(**values | changes, finished=seconds) for seconds in finished]
    return arms.Search(wall, tuple(trials))


def test_steady_state_leaves_out_the_first_quarter_and_each_workers_first_trial():
    found = search(20, 21, 23, 24, 27, 29)
    assert found.first_seconds == 20
    assert found.trial_seconds == (29 - 21) / 4
    many = search(20, 21, 40, 41, *range(42, 54))
    assert many.trial_seconds == (53 - 41) / 12


def test_ratios_are_within_a_round():
    measuring = import_module("measuring")
    ratios = measuring.ratios_of([4.0, 80.0, 6.0], [2.0, 10.0, 1.0])
    assert (ratios.median, ratios.low, ratios.high) == (6.0, 2.0, 8.0)
    assert ratios.show("×", digits=2) == "6.0 × (2.0 to 8.0)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (5.554, "5.55"),
        (0.01234, "0.0123"),
        (1234.5, "1,234"),
        (2e-7, "2.00e-07"),
        (3e12, "3.00e+12"),
    ],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str):
    assert import_module("measuring").show_number(value) == text


def test_a_goal_is_not_met_by_what_is_no_number():
    goal = import_module("measuring").Goal
    assert goal("speed", 3.5, 3.5).met
    assert not goal("speed", 3.4, 3.5).met
    assert not goal("memory", 1.4, 1.3, at_least=False).met
    assert not goal("speed", float("nan"), 3.5).met
    assert not goal("memory", float("nan"), 1.3, at_least=False).met
    assert goal("speed", 3.4, 3.5).line() == "speed: 3.40 (goal ≥ 3.5): NOT MET"


def test_results_are_written_and_a_goal_that_is_not_met_fails(tmp_path: Path):
    measuring = import_module("measuring")
    asked = SimpleNamespace(json=tmp_path / "a.json", markdown=tmp_path / "a.md")
    goals = [measuring.Goal("speed", 2.0, 3.5)]
    machine = measuring.describe_machine()
    results = {"seconds": measuring.spread_of([1.0, 2.0, 4.0])}
    assert measuring.finish(asked, machine=machine, results=results, text="t", goals=goals) == 1
    assert measuring.finish(asked, machine=machine, results=results, text="t", goals=[]) == 0
    written = json.loads(asked.json.read_text())
    assert written["results"]["seconds"] == {"median": 2.0, "low": 1.0, "high": 4.0, "count": 3}
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["packages"]["torch"] in asked.markdown.read_text()


def test_the_choice_keeps_the_bound_on_general_text():
    choose = part("final_choice").choose_trial
    trials = [
        {"domain_bpb": 1.0, "general_bpb": 2.05},
        {"domain_bpb": 1.2, "general_bpb": 2.04},
        {"domain_bpb": 1.3, "general_bpb": 2.0},
    ]
    assert choose(trials, 2.0) is trials[1]
    assert choose(trials, 1.0) is trials[2]


def test_goals_are_ratios_to_plain_within_a_round():
    report = part("report")
    ours, plain = search(*range(10, 26)), search(*range(10, 74, 4), wall=280.0)
    slow = [{"plain": plain, "ours": ours}] * 2
    goals = report.goals_of(slow, None, None)
    assert [(round(goal.value, 3), goal.met) for goal in goals] == [(4.0, True), (2.8, True)]
    few = [{"plain": search(1, 2, 6), "ours": search(1, 2, 4)}]
    assert [goal.met for goal in report.goals_of(few, None, None)] == [False]
    assert report.goals_of([{"ours": ours}], None, None) == []


def test_differences_from_stock_and_from_the_version_before_are_goals():
    report = part("report")
    choices = {"arms": {"ours": {"answer_difference": 2e-4}, "exact": {"answer_difference": 0.0}}}
    check = {"exact": {"differing": 1}, "shared": {"largest": 1e-5}}
    goals = report.goals_of([{"ours": search(1, 2, 3)}], choices, check)
    assert [goal.met for goal in goals] == [False, True, True, False]


def test_every_table_has_a_row_for_each_arm():
    report, arms = part("report"), part("arms").all_arms()
    chosen = [arms["plain"], arms["ours"]]
    rounds = [{"plain": search(5, 6, 16, wall=40.0), "ours": search(1, 2, 4, wall=10.0)}]
    assert "| plain | 4.00 × | 5.00 × | 5.00 × |" in report.ratios_table(chosen, rounds)
    table = report.arms_table(chosen, rounds)
    assert table.count("\n") == 4
    assert "| 40.0 s | 5.00 s | 10.0 s | 2.00 s | 1.00 s |" in table


def test_the_arms_are_listed_and_few_trials_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "compare")]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)
    names = list(part("arms").all_arms())
    assert [line.split()[0] for line in listed.stdout.splitlines()] == names
    refused = subprocess.run([*command, "--trials", "2"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "must be above 2" in refused.stderr


def test_a_lever_patches_a_module_as_soon_as_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "fast_module.py").write_text("speed = 9")
    monkeypatch.syspath_prepend(str(tmp_path))
    patches = {"fast_module": lambda module: setattr(module, "speed", 1)}
    monkeypatch.setitem(part("levers").LEVERS, "slow", patches)
    monkeypatch.setenv("COMPARE_LEVERS", "slow")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    runpy.run_path(str(ROOT / "benchmarks/compare_parts/patched/sitecustomize.py"))
    assert import_module("fast_module").speed == 1


def test_a_lever_is_switched_off_in_all_processes_of_its_arm_only(tmp_path: Path):
    arms = part("arms")
    work = arms.Work(tmp_path, (), 4)
    patched = str(ROOT / "benchmarks" / "compare_parts" / "patched")
    for arm in arms.all_arms().values():
        environment = work.environment(arm.levers)
        assert environment["COMPARE_LEVERS"].split() == list(arm.levers)
        assert (patched in environment["PYTHONPATH"].split(os.pathsep)) == bool(arm.levers)


def test_the_levers_of_the_arms_exist():
    levers, arms = part("levers").LEVERS, part("arms").all_arms().values()
    assert {lever for arm in arms for lever in arm.levers} == set(levers)
    modules = [module for patches in levers.values() for module in patches]
    assert len(modules) == len(set(modules)), "levers that are off together patch other modules"
    for patches in levers.values():
        for module, patch in patches.items():
            assert (ROOT / module.replace(".", os.sep)).with_suffix(".py").exists()
            assert callable(patch)
