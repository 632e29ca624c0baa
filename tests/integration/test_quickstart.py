"""The shipped quickstart, for real: a base is pretrained, trials are trained and scored, a front comes out."""

import json
import signal
import subprocess
import sys
import time
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
from sweepcp.data.source_files import source_fingerprint
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.search.search import prepare_worker
from sweepcp.search.trial_runner import TrialRunner
from tests.integration.conftest import SHORT, Nobody, sweepcp, together


@pytest.fixture(scope="module")
def bench(quickstart: Run) -> TrialRunner:
    """A worker's bench in this process."""

    experiment, files = load_experiment("quickstart")
    texts = {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
    job, _ = prepare_worker(experiment, files, texts, Nobody())
    return TrialRunner(job)


def test_the_front_shows_the_trade_off(quickstart: Run):
    assert len(quickstart.trials) == 16
    result = quickstart.front
    assert len(result.ids) >= 3
    by_id = {t.id: t for t in quickstart.trials}
    first, last = by_id[result.ids[0]], by_id[result.ids[-1]]
    assert (last.domain or 0) >= 10
    assert (first.general or -9) >= -1.5
    assert result.choice.id is not None
    assert quickstart.trials[0].point == {"lr_fraction": 0.1, "general_share": 0.5}
    assert 4 < (quickstart.trials[0].domain or 0) < 14
    assert -4 < (quickstart.trials[0].general or 0) < -0.5


def test_the_front_is_what_pandas_makes_of_the_files(quickstart: Run):
    records = [json.loads(path.read_text()) for path in quickstart.path.glob("trials/*/trial.json")]
    frame = pd.DataFrame(records)
    done = frame[frame["status"] == "done"].sort_values(["domain", "general"], ascending=False)
    best = done[done["general"] > done["general"].cummax().shift(fill_value=-np.inf)]
    assert set(best["id"]) == set(json.loads((quickstart.path / "front.json").read_text())["ids"])
    allowed = done[done["general"] >= -2.0]
    assert allowed.loc[allowed["domain"].idxmax(), "id"] == quickstart.front.choice.id


def test_scores_follow_from_the_items_on_disk(quickstart: Run):
    base = {
        (i["name"], i["unit"]): i
        for i in json.loads((quickstart.path / "base.json").read_text())["items"]
    }
    trial = quickstart.trials[3]
    total = weights = 0.0
    for member in json.loads((quickstart.path / "trials" / trial.id / "items.json").read_text()):
        if member["role"] == "general" and member["unit"] == "bits per byte":
            keep = np.array(member["select"])
            before = np.array(base[member["name"], "bits per byte"]["amount"])[keep].sum()
            after = np.array(member["amount"])[keep].sum()
            total += member["weight"] * 100 * (before - after) / before
            weights += member["weight"]
    assert trial.general == pytest.approx(total / weights, rel=1e-12)


def test_each_trial_was_fed_the_mixture_that_it_asked_for(quickstart: Run):
    for trial in quickstart.trials:
        assert sum(trial.tokens_by_source.values()) == trial.recipe.tokens
        lines = (quickstart.path / "trials" / trial.id / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == trial.recipe.steps
        for line in (json.loads(lines[9]), json.loads(lines[-1])):
            fed = sum(line["tokens"].values())
            for portion in trial.recipe.mixture.portions:
                assert (
                    abs(line["tokens"][portion.source] - portion.share * fed) < trial.recipe.seq_len
                )
        assert json.loads(lines[0])["lr"] == pytest.approx(trial.recipe.lr(1, 3e-3))


def test_the_same_command_again_keeps_everything(quickstart: Run):
    before = {p: p.stat().st_mtime_ns for p in quickstart.path.glob("trials/*/*")}
    done = sweepcp("search", "--out", quickstart.path)
    assert done.returncode == 0
    assert "16 trials are finished and stay; 0 to run" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in quickstart.path.glob("trials/*/*")} == before


def test_a_changed_experiment_is_refused_with_the_difference(quickstart: Run):
    done = sweepcp("search", "--out", quickstart.path, "--set", "training.warmup=0.2")
    assert done.returncode == 2
    assert "training.warmup: 0.1 → 0.2" in done.stderr


def test_front_commands(quickstart: Run, tmp_path: Path):
    content = json.loads(sweepcp("front", quickstart.path, "--json").stdout)
    assert [t["on_front"] for t in content["trials"]] == [
        t.id in quickstart.front.ids for t in quickstart.trials
    ]
    assert content["reference"] == {"domain": -10.0, "general": -50.0}
    assert json.loads(sweepcp("front", quickstart.path, "--json", "--knee").stdout)["choice"][
        "rule"
    ].startswith("knee")
    weighted = json.loads(sweepcp("front", quickstart.path, "--json", "--weights", "1,100").stdout)
    assert weighted["choice"]["id"] == quickstart.front.ids[0]
    strict = sweepcp("front", quickstart.path, "--max-regression", "0")
    assert strict.returncode == 0
    assert sweepcp("front", quickstart.path, "--csv", tmp_path / "t.csv").returncode == 0
    assert len(pd.read_csv(tmp_path / "t.csv")) == 16


def test_a_recipe_scores_the_same_in_another_process(quickstart: Run, bench: TrialRunner):
    assert bench.base().items == quickstart.base.items  # type: ignore[union-attr]
    for number in (0, 6):
        trial = quickstart.trials[number]
        outcome = list(bench.run(trial.recipe))[-1]
        assert isinstance(outcome, TrialOutcome)
        written = json.loads((quickstart.path / "trials" / trial.id / "items.json").read_text())
        assert [i.model_dump(mode="json") for i in outcome.items] == written


def test_task_scores_are_those_of_lm_eval(bench: TrialRunner):
    bench.model.load_state_dict(bench.weights)
    assert bench.scorer.tasks is not None
    ours = [i for i in bench.scorer.tasks.score() if i.unit == "accuracy"]
    bits = {i.name: i for i in bench.scorer.score() if i.unit == "bits per byte"}
    model = HFLM(pretrained=bench.model, tokenizer=bench.tokenizer, batch_size=32)
    manager = TaskManager(include_path=str(bench.job.made_tasks), include_defaults=False)
    stock = lm_eval.simple_evaluate(
        model,
        tasks=[i.name for i in ours],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    for items in ours:
        assert sum(items.amount) / len(items.amount) == stock["results"][items.name]["acc,none"]
        samples = sorted(stock["samples"][items.name], key=lambda s: s["doc_id"])
        gold = [-s["resps"][s["target"]][0][0] / np.log(2) for s in samples]
        assert list(bits[items.name].amount) == pytest.approx(gold, rel=1e-12)


def test_packed_documents_do_not_see_each_other(bench: TrialRunner):
    bench.model.load_state_dict(bench.weights)
    bench.model.eval()
    ids = torch.tensor(
        bench.tokenizer(["def f(x): return x" * 2, "The documentation of a module."])["input_ids"][
            0
        ]
    )
    other = torch.tensor(bench.tokenizer("The documentation of a module.")["input_ids"])
    packed = torch.cat([ids, other])[None]
    places = torch.cat([torch.arange(len(ids)), torch.arange(len(other))])[None]
    with torch.no_grad():
        together = bench.model(input_ids=packed, position_ids=places, use_cache=False).logits[
            0, len(ids) :
        ]
        alone = bench.model(input_ids=other[None], use_cache=False).logits[0]
        changed = packed.clone()
        changed[0, : len(ids)] = 65
        again = bench.model(input_ids=changed, position_ids=places, use_cache=False).logits[
            0, len(ids) :
        ]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert torch.equal(together, again)


def test_the_same_seed_elsewhere_gives_the_same_trials_to_the_last_bit(short_runs: list[Path]):
    found = []
    for out in short_runs:
        trials = load_run(out).trials
        found.append([(t.point, t.recipe_id, t.scorecard) for t in trials])
        found[-1] += [(out / "trials" / t.id / "items.json").read_text() for t in trials]
    assert found[0] == found[1]
    assert len(found[0]) == 12


def test_a_run_that_is_killed_twice_is_completed(quickstart: Run, tmp_path: Path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "sweepcp",
        "search",
        "--out",
        str(out),
        "--trials",
        "5",
        *SHORT,
    ]
    kept: dict[Path, int] = {}
    for enough in (1, 3):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 180
        while len(list(out.glob("trials/*/trial.json"))) < enough and time.monotonic() < until:
            time.sleep(0.1)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        now = {p: p.stat().st_mtime_ns for p in out.glob("trials/*/trial.json")}
        assert len(now) >= enough
        assert all(now[p] == stamp for p, stamp in kept.items())
        kept = now
        until = time.monotonic() + 15
        while leftovers(driver.pid) and time.monotonic() < until:
            time.sleep(0.5)
        assert not leftovers(driver.pid)
    done = sweepcp("search", "--out", out, "--trials", 5, *SHORT)
    assert done.returncode == 0, done.stderr
    run = load_run(out)
    assert [t.number for t in run.trials] == list(range(5))
    assert {t.status for t in run.trials} == {"done"}
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())


def leftovers(driver: int) -> list[str]:
    """Workers and raylets of a Ray that this driver started; Ray names the driver in the session folder."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    session = f"_{driver}/"
    workers = [
        line for line in listed if "ray::" in line and "Agent" not in line
    ]  # two of Ray's own stay a minute
    return [
        line for line in listed if session in line and "raylet" in line and "agent" not in line
    ] + workers


def test_diverged_trials_stay_trials(quickstart: Run, tmp_path: Path):
    space = "space={lr_fraction: {choices: [1e30, 0.1]}, general_share: {low: 0, high: 1}, anchors: [%s, %s]}"
    anchors = "{lr_fraction: 1e30, general_share: 0.5}", "{lr_fraction: 0.1, general_share: 0.5}"
    sets = [*SHORT, "--set", space % anchors]
    one, none = together(
        ["search", "--out", tmp_path / "one", "--trials", 2, *sets],
        ["search", "--out", tmp_path / "none", "--trials", 1, *sets],
    )
    assert one.returncode == 0, one.stderr
    assert [t.status for t in load_run(tmp_path / "one").trials] == ["diverged", "done"]
    assert none.returncode == 1
    assert "No trial is done" in none.stderr


def test_sigterm_leaves_a_run_that_goes_on(quickstart: Run, tmp_path: Path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "sweepcp",
        "search",
        "--out",
        str(out),
        "--trials",
        "4",
        *SHORT,
    ]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 180
    while not list(out.glob("trials/*/trial.json")) and time.monotonic() < until:
        time.sleep(0.1)
    driver.terminate()
    _, message = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM
    assert (
        message.strip() == "Stopped. What is finished is kept; the same command goes on from there."
    )
    assert 1 <= len(load_run(out).trials) < 4


def test_two_nodes_by_address(quickstart: Run, tmp_path: Path):
    code = f"""
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", "sweepcp", "search", "--out", {str(tmp_path / "run")!r}, "--trials", "4"]
done = subprocess.run([*command, *{SHORT!r}, "--address", cluster.address])
cluster.shutdown()
sys.exit(done.returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [t.status for t in load_run(tmp_path / "run").trials] == ["done"] * 4


def test_a_base_from_a_folder_is_the_same_base(quickstart: Run):
    """A folder in the format of `save_pretrained`, as a downloaded model is one; here the base made before."""
    assert quickstart.base is not None
    sets = [f"base={{path: {quickstart.base.model}, max_lr: 3e-3}}"]
    experiment, files = load_experiment("quickstart", sets)
    texts = {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
    job, _ = prepare_worker(experiment, files, texts, Nobody())
    assert TrialRunner(job).base().items == quickstart.base.items
