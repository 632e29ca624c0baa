"""Promotion: the same recipe at the target's scale, and bundles that are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from sweepcp.config.experiment import ChoiceSection
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.full_run.preflight import check_ready
from sweepcp.promote.bundle import load_bundle, planned_steps, write_manifest
from sweepcp.promote.candidate import candidate_from_run
from sweepcp.runs.run_folder import RunWriter, read_run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.util.files import write_json
from tests.make import experiment, recipe, target_content, trial, write_bundle, write_model


def refusal(folder: Path, **changes: object) -> str:
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    with pytest.raises(InvalidInput) as error:
        write_bundle(folder, **changes)
    assert not (folder / "bundle").exists()
    return str(error.value)


def broken(folder: Path) -> str:
    with pytest.raises(InvalidInput) as error:
        check_ready(load_bundle(folder))
    return str(error.value)


def rewrite(bundle: Path, change: dict[str, object]) -> None:
    """Change keys of bundle.json and rewrite the manifest."""
    write_json(bundle / "bundle.json", json.loads((bundle / "bundle.json").read_text()) | change)
    write_manifest(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def test_the_recipe_is_translated_and_nothing_else_of_it_changes(bundle: Path):
    loaded = load_bundle(bundle)
    translated = loaded.bundle.recipe
    assert translated.steps == 20
    expected = recipe(tokens=10_240, batch_tokens=512, seq_len=32, mixture=translated.mixture)
    assert translated == expected
    assert loaded.bundle.recipe_id == expected.id
    assert loaded.bundle.lineage.published == "a test"
    check_ready(loaded)


def test_deepspeed_is_told_every_number_and_no_schedule(bundle: Path):
    config = json.loads((bundle / "ds_config.json").read_text())
    assert "auto" not in json.dumps(config)
    assert not {"scheduler", "optimizer"} & set(config)
    assert config["zero_optimization"]["stage"] == 3
    assert config["train_batch_size"] == 16
    # 16 sequences = 2 processes × 4 × micro batches of 2.
    assert config["gradient_accumulation_steps"] == 4
    parsed = DeepSpeedConfig(config | {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2})
    assert parsed.gradient_clipping == 1.0


@pytest.mark.parametrize("share", [0.4, 0.0, 0.123456])
def test_the_plan_is_what_the_stream_gives(bundle: Path, share: float):
    loaded = load_bundle(bundle).bundle
    code, docs = loaded.recipe.mixture.portions
    portions = (
        code.model_copy(update={"share": 1 - share}),
        docs.model_copy(update={"share": share}),
    )
    mixture = loaded.recipe.mixture.model_copy(update={"portions": portions})
    changed = loaded.recipe.model_copy(update={"mixture": mixture})
    stores = [TokenStore(Path(str(corpus.store)), corpus.name) for corpus in loaded.corpora]
    stream = MixtureStream(changed, stores)
    tokens_read = np.zeros(2, dtype=int)
    plan = planned_steps(changed, 0.1)
    assert [step["step"] for step in plan] == list(range(1, 21))
    for step in plan:
        tokens_read += np.bincount(stream.batch(step["step"]).source, minlength=2) * 32
        assert step["tokens"] == {"code": tokens_read[0], "docs": tokens_read[1]}
        assert step["lr"] == changed.lr(step["step"], max_lr=0.1)


def test_targets_that_cannot_be_run_are_refused(tmp_path: Path):
    write_bundle(tmp_path)
    stores = target_content(tmp_path)["corpora"]
    assert isinstance(stores, dict)
    message = refusal(tmp_path, batch_tokens=15 * 32, tokens=20 * 15 * 32)
    assert "target.yaml: batch_tokens" in message
    assert "2 processes × micro batches of 2 sequences" in message
    assert "use batch_tokens 512" in message
    message = refusal(tmp_path, seq_len=128, batch_tokens=2048, tokens=20_480)
    assert "target.yaml: seq_len" in message
    assert "at most 64 tokens" in message
    capped = {**stores, "docs": {**stores["docs"], "max_epochs": 4.0}}
    message = refusal(tmp_path, corpora=capped)
    assert "target.yaml: corpora.docs.max_epochs" in message
    assert "at most 4 epochs" in message
    message = refusal(tmp_path, corpora={"code": stores["code"]})
    assert "target.yaml: corpora.docs\n" in message
    assert "a corpus for every source of the recipe" in message
    message = refusal(tmp_path, corpora={**stores, "web": stores["code"]})
    assert "target.yaml: corpora.web" in message
    assert "a source of the recipe: code, docs" in message
    missing = {**stores, "docs": {"store": str(tmp_path / "nowhere")}}
    message = refusal(tmp_path, corpora=missing)
    assert "target.yaml: corpora.docs.store" in message
    assert "sweepcp data build" in message
    message = refusal(tmp_path, corpora=None)
    assert "target.yaml: corpora\n" in message
    assert "a published recipe has no run" in message
    message = refusal(tmp_path, model={"run_base": True})
    assert "target.yaml: model.run_base" in message
    assert "a published recipe has no run" in message
    assert "tokens 10241 is not a multiple" in refusal(tmp_path, tokens=10_241)


def test_a_bundle_is_not_written_over_another(tmp_path: Path):
    write_bundle(tmp_path)
    with pytest.raises(InvalidInput, match="a folder that does not exist yet"):
        write_bundle(tmp_path)


def test_models_that_would_run_code_or_unpickle_are_refused(tmp_path: Path):
    write_bundle(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    own_code = {"auto_map": {"AutoModel": "modeling.Mine"}}
    write_json(tmp_path / "model" / "config.json", config | own_code)
    message = refusal(tmp_path)
    assert "target.yaml: model.path" in message
    assert "own code is never run" in message
    write_json(tmp_path / "model" / "config.json", config)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    assert "pickled weights are never loaded" in refusal(tmp_path)


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path):
    write_bundle(tmp_path)
    meta = json.loads((tmp_path / "stores" / "docs" / "store.json").read_text())
    write_json(tmp_path / "stores" / "docs" / "store.json", meta | {"tokenizer": "another"})
    assert "built with the model's own tokenizer" in refusal(tmp_path)


def test_planned_corpora_are_promoted_and_not_trained_on(tmp_path: Path):
    corpora = {name: {"store": "planned", "tokens": 1_000_000} for name in ("code", "docs")}
    folder = write_bundle(tmp_path, corpora=corpora)
    assert "a planned one has no tokens to train on" in broken(folder)


def test_a_changed_byte_is_found_in_every_file(bundle: Path):
    for name in ("bundle.json", "ds_config.json", "plan.jsonl"):
        before = (bundle / name).read_bytes()
        (bundle / name).write_bytes(before.replace(b"1", b"2", 1))
        message = broken(bundle)
        assert name in message
        assert "SHA-256" in message
        (bundle / name).write_bytes(before)
    (bundle / "ds_config.json").unlink()
    assert "missing" in broken(bundle)


def test_bundles_that_this_version_cannot_read(bundle: Path):
    rewrite(bundle, {"format": 2})
    assert "install the version of sweepcp that wrote it" in broken(bundle)
    rewrite(bundle, {"format": 1, "more": 1})
    assert "a complete record of this version of sweepcp" in broken(bundle)
    (bundle / "manifest.json").write_text("{}")
    assert "format" in broken(bundle)
    (bundle / "manifest.json").unlink()
    assert "sweepcp promote --out" in broken(bundle)


def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["../target.yaml"] = "0" * 64
    write_json(bundle / "manifest.json", manifest)
    assert "files of the bundle itself" in broken(bundle)


def test_what_a_bundle_was_made_with_is_checked_again(tmp_path: Path):
    bundle = write_bundle(tmp_path)
    shutil.move(tmp_path / "stores" / "docs", tmp_path / "elsewhere")
    assert "mount the store there" in broken(bundle)
    shutil.move(tmp_path / "elsewhere", tmp_path / "stores" / "docs")
    meta = (tmp_path / "stores" / "docs" / "store.json").read_text()
    (tmp_path / "stores" / "docs" / "store.json").write_text(meta + " ")
    assert "the store that the bundle was made with" in broken(bundle)
    (tmp_path / "stores" / "docs" / "store.json").write_text(meta)
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", num_hidden_layers=1)
    assert "the model that the bundle was made with" in broken(bundle)


def test_only_a_done_trial_is_promoted(tmp_path: Path):
    writer = RunWriter(tmp_path)
    writer.start(experiment(choose=ChoiceSection(max_regression=1.0)), {})
    trials = [
        trial(0, 5.0, -3.0),
        trial(1, None, None, status="diverged"),
        trial(2, None, None, status="stopped"),
        trial(3, None, None, status="failed"),
    ]
    for record in trials:
        writer.begin_trial(record.id)
        writer.write_trial(record, TrialOutcome(status=record.status))
    run = read_run(tmp_path)
    for record in trials[1:]:
        with pytest.raises(InvalidInput, match=f"{record.id} is {record.status}: it broke"):
            candidate_from_run(run, record.id)
    with pytest.raises(InvalidInput, match="name a trial of this run"):
        candidate_from_run(run, "0009")
    with pytest.raises(InvalidInput, match="general regression ≤ 1 %; nearest is 0000"):
        candidate_from_run(run, None)
    with pytest.raises(InvalidInput, match="≤ 2 %"):
        candidate_from_run(run.with_rule(max_regression=2.0), None)
