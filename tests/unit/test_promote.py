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
from sweepcp.promote.bundle import load_bundle, write_manifest
from sweepcp.promote.candidate import candidate_from_run
from sweepcp.promote.translate import planned_steps
from sweepcp.runs.run_folder import RunWriter, read_run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.util.files import write_json
from tests.make import experiment, recipe, target_content, trial, write_bundle, write_model


def refused(folder: Path, **changes: object) -> str:
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
    """Change keys of bundle.json, with the manifest made anew."""
    write_json(bundle / "bundle.json", json.loads((bundle / "bundle.json").read_text()) | change)
    write_manifest(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path)


def test_the_recipe_is_translated_and_nothing_else_of_it_changes(bundle: Path):
    opened = load_bundle(bundle)
    found = opened.bundle.recipe
    assert (found.tokens, found.batch_tokens, found.seq_len, found.steps) == (10_240, 512, 32, 20)
    same = recipe(tokens=10_240, batch_tokens=512, seq_len=32, mixture=found.mixture)
    assert found == same
    assert opened.bundle.recipe_id == same.id
    assert opened.bundle.lineage.published == "a test"
    check_ready(opened)


def test_deepspeed_is_told_every_number_and_no_schedule(bundle: Path):
    config = json.loads((bundle / "ds_config.json").read_text())
    assert "auto" not in json.dumps(config)
    assert not {"scheduler", "optimizer"} & set(config)
    assert config["zero_optimization"]["stage"] == 3
    assert config["train_batch_size"] == 16
    assert (
        config["gradient_accumulation_steps"] == 4
    )  # 16 sequences = 2 processes × 4 × micro batches of 2
    known = DeepSpeedConfig(config | {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2})
    assert known.gradient_clipping == 1.0


@pytest.mark.parametrize("share", [0.4, 0.0, 0.123456])
def test_the_plan_is_what_the_stream_gives(bundle: Path, share: float):
    found = load_bundle(bundle).bundle
    portions = [
        p.model_copy(update={"share": s})
        for p, s in zip(found.recipe.mixture.portions, (1 - share, share))
    ]  # noqa: B905
    changed = found.recipe.model_copy(
        update={"mixture": found.recipe.mixture.model_copy(update={"portions": tuple(portions)})}
    )
    stream = MixtureStream(changed, [TokenStore(Path(str(c.store)), c.name) for c in found.corpora])
    fed = np.zeros(2, dtype=int)
    rows = planned_steps(changed, 0.1)
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        fed += np.bincount(stream.batch(row["step"]).source, minlength=2) * 32
        assert row["tokens"] == dict(zip(("code", "docs"), fed.tolist(), strict=True))
        assert row["lr"] == changed.lr(row["step"], 0.1)


def test_targets_that_cannot_be_run_are_refused(tmp_path: Path):
    write_bundle(tmp_path)
    stores = target_content(tmp_path)["corpora"]
    assert isinstance(stores, dict)
    said = refused(tmp_path, batch_tokens=15 * 32, tokens=20 * 15 * 32)
    assert "2 processes × micro batches of 2 sequences" in said
    assert "use batch_tokens 512" in said
    assert "the model takes at most 64 tokens" in refused(
        tmp_path, seq_len=128, batch_tokens=2048, tokens=20_480
    )
    capped = {**stores, "docs": {**stores["docs"], "max_epochs": 4.0}}
    said = refused(tmp_path, corpora=capped)
    assert "epochs" in said
    assert "no run reads it more than 4 times" in said
    assert "every source of the recipe has a corpus" in refused(
        tmp_path, corpora={"code": stores["code"]}
    )
    assert "a source of the recipe: code, docs" in refused(
        tmp_path, corpora={**stores, "web": stores["code"]}
    )
    gone = {**stores, "docs": {"store": str(tmp_path / "nowhere")}}
    assert "sweepcp data build" in refused(tmp_path, corpora=gone)
    assert "a published recipe has no run" in refused(tmp_path, corpora=None)
    assert "a published recipe has no run" in refused(tmp_path, model={"run_base": True})
    assert "tokens 10241 is not a multiple" in refused(tmp_path, tokens=10_241)


def test_a_bundle_is_not_written_over_another(tmp_path: Path):
    write_bundle(tmp_path)
    with pytest.raises(InvalidInput, match="a folder that does not exist yet"):
        write_bundle(tmp_path)


def test_models_that_would_run_code_or_unpickle_are_refused(tmp_path: Path):
    write_bundle(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    write_json(
        tmp_path / "model" / "config.json", config | {"auto_map": {"AutoModel": "modeling.Mine"}}
    )
    assert "own code is never run" in refused(tmp_path)
    write_json(tmp_path / "model" / "config.json", config)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    assert "pickled weights are never loaded" in refused(tmp_path)


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path):
    write_bundle(tmp_path)
    meta = json.loads((tmp_path / "stores" / "docs" / "store.json").read_text())
    write_json(tmp_path / "stores" / "docs" / "store.json", meta | {"tokenizer": "another"})
    assert "made with the model's own tokenizer" in refused(tmp_path)


def test_planned_corpora_are_promoted_and_not_trained_on(tmp_path: Path):
    corpora = {name: {"store": "planned", "tokens": 1_000_000} for name in ("code", "docs")}
    folder = write_bundle(tmp_path, corpora=corpora)
    assert "a planned store has none" in broken(folder)


def test_a_changed_byte_is_found_in_every_file(bundle: Path):
    for name in ("bundle.json", "ds_config.json", "plan.jsonl"):
        before = (bundle / name).read_bytes()
        (bundle / name).write_bytes(before.replace(b"1", b"2", 1))
        said = broken(bundle)
        assert name in said
        assert "SHA-256" in said
        (bundle / name).write_bytes(before)
    (bundle / "ds_config.json").unlink()
    assert "missing" in broken(bundle)


def test_bundles_that_this_version_cannot_read(bundle: Path):
    rewrite(bundle, {"format": 2})
    assert "install that version of sweepcp" in broken(bundle)
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
    assert "mount it there" in broken(bundle)
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
    for number, (domain, general, status) in enumerate(
        [
            (5.0, -3.0, "done"),
            (None, None, "diverged"),
            (None, None, "stopped"),
            (None, None, "failed"),
        ]
    ):
        made = trial(number, domain, general, status=status)
        writer.begin_trial(made.id)
        writer.write_trial(made, TrialOutcome(status=status))  # type: ignore[arg-type]
    run = read_run(tmp_path)
    for id_, status in (("0001", "diverged"), ("0002", "stopped"), ("0003", "failed")):
        with pytest.raises(InvalidInput, match=f"{id_} is {status}: it broke"):
            candidate_from_run(run, id_)
    with pytest.raises(InvalidInput, match="name a trial of this run"):
        candidate_from_run(run, "0009")
    with pytest.raises(InvalidInput, match="general regression ≤ 1 %; nearest is 0000"):
        candidate_from_run(run, None)
    with pytest.raises(InvalidInput, match="≤ 2 %"):
        candidate_from_run(run.with_rule(max_regression=2.0), None)
