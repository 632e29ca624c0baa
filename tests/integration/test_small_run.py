"""A short search of the quickstart: what its files hold, and that other processes agree."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sweepcp import load_run
from sweepcp.corpora.experiment import load_experiment
from sweepcp.corpora.provenance import base_model_of_run
from sweepcp.data.source_files import source_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.scoring.scorecard import read_items
from sweepcp.scoring.scorer import Scorer
from sweepcp.search.devices import TrialSlots
from sweepcp.search.rescore import score_model
from sweepcp.search.search import prepare_worker
from sweepcp.search.trial_runner import TrialRunner
from sweepcp.util.progress import NoProgress
from tests.integration.conftest import (
    SMALL,
    set_options,
    side_by_side,
    sweepcp,
    wait_for_trials,
)


def make_runner(overrides: list[str]) -> TrialRunner:
    """The runner of a worker, in this process."""
    experiment, files = load_experiment("quickstart", overrides)
    fingerprints = {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
    slots = TrialSlots(gpu_share=0.0, concurrency=1)
    spec, _ = prepare_worker(experiment, files, fingerprints, slots=slots, progress=NoProgress())
    return TrialRunner(spec)


@pytest.fixture(scope="module")
def runner(small_run: Run) -> TrialRunner:
    return make_runner(SMALL)


def test_the_front_is_what_pandas_makes_of_the_files(small_run: Run):
    records = [json.loads(path.read_text()) for path in small_run.path.glob("trials/*/trial.json")]
    frame = pd.DataFrame(records)
    assert len(frame) == 6
    done = frame[frame["status"] == "done"]
    done = done.sort_values(["domain", "general"], ascending=False)
    best = done[done["general"] > done["general"].cummax().shift(fill_value=-np.inf)]
    front = json.loads((small_run.path / "front.json").read_text())
    assert set(best["id"]) == set(front["ids"])
    allowed = done[done["general"] >= -2.0]
    best_allowed = allowed.sort_values("domain").iloc[-1]
    assert best_allowed["id"] == small_run.front.choice.id


def test_scores_follow_from_the_items_on_disk(small_run: Run):
    base_items = json.loads((small_run.path / "base.json").read_text())["items"]
    base = {(member["name"], member["unit"]): member for member in base_items}
    trial = small_run.trials[3]
    total = weights = 0.0
    items = json.loads((small_run.path / "trials" / trial.id / "items.json").read_text())
    for member in items["members"]:
        if member["role"] == "general" and member["unit"] == "bits per byte":
            keep = [int(document[-1], 16) % 2 == 1 for document in member["document"]]
            before = np.array(base[member["name"], "bits per byte"]["amount"])[keep].sum()
            after = np.array(member["amount"])[keep].sum()
            total += member["weight"] * 100 * (before - after) / before
            weights += member["weight"]
    assert trial.general == pytest.approx(total / weights, rel=1e-12)


def test_each_trial_was_fed_the_mixture_that_it_asked_for(small_run: Run):
    for trial in small_run.trials:
        assert sum(trial.tokens_by_source.values()) == trial.recipe.tokens
        text = (small_run.path / "trials" / trial.id / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == trial.recipe.steps
        for line in (lines[4], lines[-1]):
            fed = sum(line["tokens"].values())
            for portion in trial.recipe.mixture.portions:
                distance = abs(line["tokens"][portion.source] - portion.share * fed)
                assert distance < trial.recipe.seq_len
        assert lines[0]["lr"] == pytest.approx(trial.recipe.lr(1, max_lr=3e-3))


def test_the_same_command_again_keeps_everything(small_run: Run):
    before = {path: path.stat().st_mtime_ns for path in small_run.path.glob("trials/*/*")}
    done = sweepcp("search", "--out", small_run.path, *set_options(SMALL))
    assert done.returncode == 0
    assert "6 trials are finished; 0 left to run" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in small_run.path.glob("trials/*/*")} == before


def test_a_changed_experiment_is_refused_with_the_difference(small_run: Run):
    changed = set_options([*SMALL, "training.warmup=0.2"])
    done = sweepcp("search", "--out", small_run.path, *changed)
    assert done.returncode == 2
    assert "training.warmup: 0.1 → 0.2" in done.stderr


def test_front_commands(small_run: Run, tmp_path: Path):
    content = json.loads(sweepcp("front", small_run.path, "--json").stdout)
    on_front = [trial["on_front"] for trial in content["trials"]]
    assert on_front == [trial.id in small_run.front.ids for trial in small_run.trials]
    assert content["reference"] == {"domain": -10.0, "general": -50.0}
    weighted = json.loads(sweepcp("front", small_run.path, "--json", "--weights", "1,100").stdout)
    assert weighted["choice"]["id"] == small_run.front.ids[0]
    done = sweepcp("front", small_run.path, "--knee", "--csv", tmp_path / "trials.csv")
    assert done.returncode == 0
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_search_that_a_signal_stops_resumes(small_run: Run, tmp_path: Path, number: int):
    """It resumes to the trials that the undisturbed search of the same seed has."""
    command = [sys.executable, "-m", "sweepcp", "search", "--out", str(tmp_path / "run")]
    command += set_options([*SMALL, "budget.trials=4"])
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_trials(tmp_path / "run", 1)
    driver.send_signal(number)
    _, message = driver.communicate(timeout=60)
    assert driver.returncode == 128 + number
    assert message.strip() == "Stopped. Finished work is kept. Run the same command to resume."
    before = load_run(tmp_path / "run").trials
    assert 1 <= len(before) < 4
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    trials = load_run(tmp_path / "run").trials
    assert [trial.status for trial in trials] == ["done"] * 4
    # The first five points are an anchor and quasi-random ones, whatever has finished before.
    for trial, undisturbed in zip(trials, small_run.trials, strict=False):
        assert (trial.point, trial.scorecard) == (undisturbed.point, undisturbed.scorecard)


def test_a_recipe_scores_the_same_in_another_process(small_run: Run, runner: TrialRunner):
    assert small_run.base is not None
    assert runner.score_base().items == small_run.base.items
    for trial in (small_run.trials[0], small_run.trials[5]):
        outcome = list(runner.run(trial.recipe))[-1]
        assert isinstance(outcome, TrialOutcome)
        written = read_items(small_run.path / "trials" / trial.id / "items.json")
        assert list(outcome.items) == written


def test_another_process_has_the_same_prompts_and_environment(small_run: Run, runner: TrialRunner):
    assert small_run.base is not None
    assert runner.environment == small_run.base.environment
    assert set(small_run.base.environment) >= {"device", "precision", "prompts", "torch"}
    tasks = runner.scorer.tasks
    assert tasks is not None
    instance = tasks.members[-1].loaded.tasks[-1].instances[-1][-1]
    before = instance.arguments
    instance.arguments = (before[0] + "!", *before[1:])
    assert tasks.prompts != runner.environment["prompts"]
    instance.arguments = before


def test_a_model_is_not_scored_against_a_base_of_another_device(small_run: Run):
    assert small_run.base is not None
    environment = small_run.base.environment | {"device": "cuda"}
    run = replace(small_run, base=small_run.base.model_copy(update={"environment": environment}))
    with pytest.raises(InvalidInput) as error:
        score_model(Path(base_model_of_run(run)), run)
    assert error.value.found == "device cpu"
    assert "device cuda" in error.value.rule


def test_a_recipe_that_diverges_ends_with_its_reason(small_run: Run, runner: TrialRunner):
    recipe = small_run.trials[0].recipe.model_copy(update={"lr_fraction": 1e30})
    outcome = list(runner.run(recipe))[-1]
    assert isinstance(outcome, TrialOutcome)
    assert outcome.status == "diverged"
    assert "step" in str(outcome.reason)
    assert not outcome.items


def test_task_scores_are_those_of_lm_eval(runner: TrialRunner):
    runner.model.load_state_dict(runner.base_weights)
    spec = replace(runner.spec.scoring, scoring="exact")
    exact = Scorer(spec, runner.model, runner.tokenizer, runner.scorer.group).score()
    shared = runner.scorer.score()
    assert runner.scorer.scoring == "shared"
    accuracies = [items for items in exact if items.unit == "accuracy"]
    assert accuracies == [
        items.model_copy(update={"scoring": "exact"})
        for items in shared
        if items.unit == "accuracy"
    ]
    bits, shared_bits = (
        {items.name: list(items.amount) for items in scores if items.unit == "bits per byte"}
        for scores in (exact, shared)
    )
    model = HFLM(pretrained=runner.model, tokenizer=runner.tokenizer, batch_size=32)
    folder = str(runner.spec.scoring.generated_tasks)
    for items in accuracies:
        stock = lm_eval.simple_evaluate(
            model,
            tasks=[items.name],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        mean = sum(items.amount) / len(items.amount)
        assert mean == stock["results"][items.name]["acc,none"]
        samples = sorted(stock["samples"][items.name], key=lambda sample: sample["doc_id"])
        gold = [-s["resps"][s["target"]][0][0] / np.log(2) for s in samples]
        assert bits[items.name] == pytest.approx(gold, rel=1e-12)
        assert shared_bits[items.name] == pytest.approx(gold, rel=0, abs=1e-4)


def test_packed_documents_do_not_see_each_other(runner: TrialRunner):
    runner.model.load_state_dict(runner.base_weights)
    runner.model.eval()
    first = torch.tensor(runner.tokenizer("def f(x): return x" * 2)["input_ids"])
    second = torch.tensor(runner.tokenizer("The documentation of a module.")["input_ids"])
    packed = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]

    def second_logits(inputs: torch.Tensor) -> torch.Tensor:
        output = runner.model(input_ids=inputs, position_ids=positions, use_cache=False)
        return output.logits[0, len(first) :]

    changed = packed.clone()
    changed[0, : len(first)] = 65
    with torch.no_grad():
        alone = runner.model(input_ids=second[None], use_cache=False).logits[0]
        torch.testing.assert_close(second_logits(packed), alone, atol=1e-4, rtol=0)
        assert torch.equal(second_logits(packed), second_logits(changed))


@pytest.mark.slow
def test_a_base_from_a_folder_is_the_same_base(small_run: Run):
    """A folder that `save_pretrained` wrote, as a downloaded model is; here the run's own base."""
    assert small_run.base is not None
    from_folder = make_runner([*SMALL, f"base={{path: {small_run.base.model}, max_lr: 3e-3}}"])
    assert from_folder.score_base().items == small_run.base.items


@pytest.mark.slow
def test_diverged_trials_stay_trials(small_run: Run, tmp_path: Path):
    space = "space={lr_fraction: {choices: [1e30, 0.1]}, general_share: {low: 0, high: 1}, "
    space += "anchors: [{lr_fraction: 1e30, general_share: 0.5}, "
    space += "{lr_fraction: 0.1, general_share: 0.5}]}"
    options = set_options([*SMALL, space])
    one, none = side_by_side(
        ["search", "--out", tmp_path / "one", *options, "--trials", 2],
        ["search", "--out", tmp_path / "none", *options, "--trials", 1],
    )
    assert one.returncode == 0, one.stderr
    assert [trial.status for trial in load_run(tmp_path / "one").trials] == ["diverged", "done"]
    assert none.returncode == 1
    assert "No trial is done" in none.stderr
