"""The full run for real: ZeRO-3 on two processes against one, and a trial promoted and repeated.

`python -m tests.integration.test_full_run` rewrites the golden losses, from one process without
DeepSpeed.
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
STEPS = 50
TOKENS = STEPS * 16 * 32
MAX_LR = 0.1


def small_recipe() -> Recipe:
    """The recipe of the bundle of these tests."""
    return recipe(seq_len=32, batch_tokens=16 * 32, tokens=TOKENS, mixture=mixture(0.4))


def train_in_one_process(model: Path, stores: list[TokenStore]) -> list[dict[str, Any]]:
    """Metrics of the recipe's steps without DeepSpeed, each batch in one forward pass."""
    loaded = load_model(str(model), revision=None, device=torch.device("cpu"))
    small = small_recipe()
    engine = PlainEngine(loaded, small, micro_batch=None, precision="fp32")
    steps = run_training(engine, small, MixtureStream(small, stores), max_lr=MAX_LR)
    return [step._asdict() for step in steps]


def check_golden(steps: list[dict[str, Any]], golden: list[dict[str, Any]]) -> None:
    assert len(steps) == len(golden) == STEPS
    for step, expected in zip(steps, golden, strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=0, abs=1e-5)
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0, abs=1e-4)
        for key in ("step", "lr", "tokens"):
            assert step[key] == expected[key]


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return content


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    return write_bundle(folder, tokens=TOKENS, checkpoints={"every": 50}, watch={"every": 50})


@pytest.fixture(scope="module")
def stores(bundle: Path) -> list[TokenStore]:
    return [TokenStore(bundle.parent / "stores" / name, name) for name in ("code", "docs")]


def test_one_process_gives_the_golden_losses(
    bundle: Path, stores: list[TokenStore], golden: list[dict[str, Any]]
):
    check_golden(train_in_one_process(bundle.parent / "model", stores), golden)


def test_zero_3_on_two_processes_gives_the_golden_losses(
    bundle: Path, stores: list[TokenStore], golden: list[dict[str, Any]]
):
    """Each process takes four micro batches per step, of unequal numbers of target tokens."""
    row_targets = (MixtureStream(small_recipe(), stores).batch(1).targets != IGNORED).sum(1)
    micro_batch_targets = row_targets.reshape(8, 2).sum(1)
    assert micro_batch_targets.max() - micro_batch_targets.min() >= 8
    done = torchrun(2, "-m", "sweepcp", "train", bundle)
    assert done.returncode == 0, done.stderr
    check_golden(metrics(bundle / "run"), golden)
    assert done.stdout.count("scoring the model at step 0") == 1  # only the first rank logs
    assert f"step {STEPS}/{STEPS}  loss" in done.stdout


def read_card(path: Path) -> Scorecard:
    return Scorecard.model_validate_json(path.read_bytes())


@pytest.mark.slow
def test_a_promoted_trial_comes_to_the_same_scores(quickstart: Run, tmp_path: Path):
    """The target's model, tokens and batch are the trial's, so the full run repeats the trial."""
    trial = next(t for t in quickstart.trials if t.id == quickstart.front.choice.id)
    bundle, out = tmp_path / "bundle", tmp_path / "bundle" / "run"
    done = sweepcp("promote", quickstart.path, "--target", "quickstart-cpu", "--out", bundle)
    assert done.returncode == 0, done.stderr
    assert "torchrun --nproc-per-node 2 -m sweepcp train" in done.stdout
    done = torchrun(2, "-m", "sweepcp", "train", bundle)
    assert done.returncode == 0, done.stderr
    card = read_card(out / "scorecard.json")
    assert trial.scorecard is not None
    for split, of_trial in (
        (card.select, trial.scorecard.select),
        (card.report, trial.scorecard.report),
    ):
        assert split.domain == pytest.approx(of_trial.domain, abs=0.1)
        assert split.general == pytest.approx(of_trial.general, abs=0.1)

    steps = metrics(out)
    trial_steps = metrics(quickstart.path / "trials" / trial.id)
    plan = [json.loads(line) for line in (bundle / "plan.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in ("step", "lr", "tokens")} for row in steps] == plan
    assert [row["tokens"] for row in steps] == [row["tokens"] for row in trial_steps]
    for row, of_trial_row in zip(steps, trial_steps, strict=True):
        assert row["loss"] == pytest.approx(of_trial_row["loss"], rel=0, abs=1e-4)

    done = sweepcp("score", out / "model", "--run", quickstart.path, "--json")
    assert done.returncode == 0, done.stderr
    scored = Scorecard.model_validate_json(done.stdout)
    assert scored.report.domain == pytest.approx(card.report.domain, abs=0.01)
    assert scored.report.general == pytest.approx(card.report.general, abs=0.01)

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "finished" in sweepcp("train", bundle).stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model_folder = write_model(Path(folder) / "model")
        (Path(folder) / "stores").mkdir()
        corpora = write_corpora(Path(folder) / "stores", model_folder)
        golden_steps = train_in_one_process(model_folder, list(corpora.values()))
    GOLDEN.write_text(json.dumps(golden_steps, indent=0) + "\n")
