"""`benchmarks/compare` with small trials: its arms run, and their scores are those of lm-eval."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "compare"
ARMS = ("plain", "ours", "exact", "stock")
"""Another search, and a lever that is an option and one that is patched."""
LARGEST_DIFFERENCE = 1e-4
"""Of an answer under shared contexts."""


def run_tiny(folder: Path) -> dict[str, Any]:
    """Run a round of three trials, and return what the JSON file holds."""
    out = folder / "compare.json"
    command = [sys.executable, str(PROGRAM), "--tiny", "--rounds", "1", "--trials", "3"]
    command += ["--arms", *ARMS, "--work", str(folder / "work"), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Status 1: small trials are no measure of speed, so the goals may be missed.
    assert done.returncode in (0, 1), done.stderr
    assert out.exists(), done.stderr
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def anchor(search: dict[str, Any]) -> dict[str, Any]:
    """Return the trial at the anchor of the space, which every arm of sweepcp has."""
    trials: list[dict[str, Any]] = search["trials"]
    (found,) = (t for t in trials if t["point"] == {"lr_fraction": 0.1, "general_share": 0.5})
    return found


@pytest.mark.slow
def test_every_arm_runs_and_its_choice_has_the_scores_of_stock_lm_eval(tmp_path: Path):
    results = run_tiny(tmp_path)["results"]
    (searches,) = results["rounds"]
    assert tuple(searches) == ARMS
    assert {len(search["trials"]) for search in searches.values()} == {3}
    for arm, choice in results["choices"]["arms"].items():
        assert choice["accuracy_difference"] == 0, arm
        assert choice["bpb_difference"] < 1e-5, arm
        if arm == "exact":
            assert choice["answer_difference"] == 0
        elif searches[arm]["trials"][0]["gold_bits"]:
            assert choice["answer_difference"] < LARGEST_DIFFERENCE, arm
    exact = anchor(searches["exact"])
    for arm in ("ours", "stock"):
        found = anchor(searches[arm])
        assert found["accuracies"] == exact["accuracies"]
        for task, bits in exact["gold_bits"].items():
            assert found["gold_bits"][task] == pytest.approx(bits, abs=LARGEST_DIFFERENCE)
