"""The full run for real: ZeRO-3 on two processes against one, and a trial of the quickstart promoted and run again.

`python -m tests.integration.test_full_run` writes the golden losses anew, from one process without DeepSpeed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import IGNORED, MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.models.loading import load_model
from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import Scorecard
from sweepcp.training.engine import PlainEngine
from sweepcp.training.loop import run_training
from tests.integration.conftest import metrics, sweepcp, torchrun
from tests.make import mixture, recipe, write_bundle, write_corpora, write_model

GOLDEN = Path(__file__).parents[1] / "golden" / "full_run.json"
STEPS = {"tokens": 50 * 16 * 32}


def one_process(model: Path, stores: list[TokenStore]) -> list[dict[str, Any]]:
    """50 steps of the recipe of `write_bundle` without DeepSpeed, each batch in one pass."""
    loaded = load_model(str(model), revision=None, device=torch.device("cpu"))
    asked = small_recipe()
    engine = PlainEngine(loaded, asked, None, "fp32")
    return [row._asdict() for row in run_training(engine, asked, 0.1, MixtureStream(asked, stores))]


def small_recipe() -> Recipe:
    return recipe(seq_len=32, batch_tokens=16 * 32, mixture=mixture(0.4), **STEPS)


def close(ours: list[dict[str, Any]], golden: list[dict[str, Any]]) -> None:
    assert len(ours) == len(golden) == 50
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, golden, strict=True)) <= 1e-5
    assert (
        max(abs(a["grad_norm"] - b["grad_norm"]) for a, b in zip(ours, golden, strict=True)) <= 1e-4
    )
    for key in ("step", "lr", "tokens"):
        assert [row[key] for row in ours] == [row[key] for row in golden]


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return content


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("golden"), **STEPS, checkpoints={"every": 50}, watch={"every": 50}
    )


def test_one_process_gives_the_golden_losses(bundle: Path, golden: list[dict[str, Any]]):
    stores = [TokenStore(bundle.parent / "stores" / name, name) for name in ("code", "docs")]
    close(one_process(bundle.parent / "model", stores), golden)


def test_zero_3_on_two_processes_gives_the_golden_losses(
    bundle: Path, golden: list[dict[str, Any]]
):
    """Each process takes four micro batches a step, of unequal numbers of target tokens."""
    stores = [TokenStore(bundle.parent / "stores" / name, name) for name in ("code", "docs")]
    targets = (
        (MixtureStream(small_recipe(), stores).batch(1).targets != IGNORED)
        .sum(1)
        .reshape(8, 2)
        .sum(1)
    )
    assert targets.max() - targets.min() >= 8
    done = torchrun(2, "-m", "sweepcp", "train", bundle)
    assert done.returncode == 0, done.stderr
    close(metrics(bundle / "run"), golden)


def test_a_promoted_trial_comes_to_the_same_scores(quickstart: Run, tmp_path: Path):
    """The target's model, tokens and batch are the trial's, so the full run must be the trial again."""
    trial = next(t for t in quickstart.trials if t.id == quickstart.front.choice.id)
    done = sweepcp(
        "promote", quickstart.path, "--target", "quickstart-cpu", "--out", tmp_path / "bundle"
    )
    assert done.returncode == 0, done.stderr
    assert "torchrun --nproc-per-node 2 -m sweepcp train" in done.stdout
    done = torchrun(2, "-m", "sweepcp", "train", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "bundle" / "run"
    card, asked = (
        Scorecard.model_validate_json((out / "scorecard.json").read_bytes()),
        trial.scorecard,
    )
    assert asked is not None
    for half, before in ((card.select, asked.select), (card.report, asked.report)):
        assert half.domain == pytest.approx(before.domain, abs=0.1)
        assert half.general == pytest.approx(before.general, abs=0.1)

    ours, theirs = metrics(out), metrics(quickstart.path / "trials" / trial.id)
    plan = [
        json.loads(line) for line in (tmp_path / "bundle" / "plan.jsonl").read_text().splitlines()
    ]
    assert [{key: row[key] for key in ("step", "lr", "tokens")} for row in ours] == plan
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)) <= 1e-4

    done = sweepcp("score", out / "model", "--run", quickstart.path, "--json")
    assert done.returncode == 0, done.stderr
    scored = Scorecard.model_validate_json(done.stdout)
    assert scored.report.domain == pytest.approx(card.report.domain, abs=0.01)
    assert scored.report.general == pytest.approx(card.report.general, abs=0.01)
    before_files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "finished" in sweepcp("train", tmp_path / "bundle").stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before_files


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = write_model(Path(folder) / "model")
        (Path(folder) / "stores").mkdir()
        golden_rows = one_process(made, list(write_corpora(Path(folder) / "stores", made).values()))
    GOLDEN.write_text(json.dumps(golden_rows, indent=0) + "\n")
