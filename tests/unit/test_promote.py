"""Promotion: the same recipe at the target's scale, and bundles that are refused."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from rich.console import Console

from sweepcp.config.experiment import ChoiceSection
from sweepcp.console.bundle import show_bundle
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.full_run.preflight import check_content, check_ready, ds_config_for
from sweepcp.promote import candidate
from sweepcp.promote.bundle import LoadedBundle, load_bundle, planned_steps, write_manifest
from sweepcp.promote.candidate import candidate_from_run
from sweepcp.runs.caveats import caveats_of
from sweepcp.runs.run_folder import RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import TrialOutcome
from sweepcp.util.files import write_json
from tests.make import experiment, recipe, target_content, trial, write_bundle, write_model
from tests.make_run import write_run


def refusal(folder: Path, **changes: object) -> str:
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    with pytest.raises(InvalidInput) as error:
        write_bundle(folder, **changes)
    assert not (folder / "bundle").exists()
    return str(error.value)


def broken(folder: Path) -> str:
    with pytest.raises(InvalidInput) as error:
        load_and_check(folder)
    return str(error.value)


def load_and_check(folder: Path) -> None:
    loaded = load_bundle(folder)
    check_ready(loaded)
    check_content(loaded)


def rewrite(bundle: Path, change: dict[str, object]) -> None:
    """Change keys of bundle.json and rewrite the manifest."""
    write_json(bundle / "bundle.json", json.loads((bundle / "bundle.json").read_text()) | change)
    write_manifest(bundle)


def shown_bundle(loaded: LoadedBundle) -> str:
    console = Console(file=StringIO(), width=200)
    show_bundle(console, loaded.bundle, loaded.path)
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


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
    assert "2 data-parallel processes × micro batches of 2 sequences" in message
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


def test_replicas_of_the_model_divide_the_batch_and_not_all_devices(tmp_path: Path):
    """Four devices, two to a replica, and six sequences per step."""
    changes: dict[str, object] = {
        "hardware": {"device": "cpu", "nodes": 1, "per_node": 4},
        "compute": {"micro_batch": 1, "precision": "fp32"},
        "batch_tokens": 6 * 32,
        "tokens": 20 * 6 * 32,
    }
    write_bundle(tmp_path)
    assert "4 data-parallel processes" in refusal(tmp_path, **changes)
    message = refusal(tmp_path, **changes, parallelism={"pipeline": 4, "tensor": 2})
    assert "tensor × pipeline = 8 divides the 4 devices" in message
    changes["parallelism"] = {"tensor": 2}
    loaded = load_bundle(write_bundle(tmp_path, **changes))
    assert loaded.ds_config is None
    assert not (loaded.path / "ds_config.json").exists()
    shown = shown_bundle(loaded)
    assert "per device" not in shown
    assert "3 per replica of tensor 2 × pipeline 1 (exports)" in shown
    assert f"sweepcp export {loaded.path} --to megatron-lm" in shown
    with pytest.raises(InvalidInput, match="divides 6 micro batches") as caught:
        ds_config_for(loaded, 4)
    assert "start another number" in caught.value.fix
    assert ds_config_for(loaded, 3)["gradient_accumulation_steps"] == 2
    # Where all devices divide the batch, ZeRO-3 can use them all.
    changes |= {"batch_tokens": 8 * 32, "tokens": 20 * 8 * 32}
    shutil.rmtree(loaded.path)
    assert ds_config_for(load_bundle(write_bundle(tmp_path, **changes)), 4) == (
        load_bundle(loaded.path).ds_config
    )


def test_hours_and_cost_are_shown_as_an_interval(tmp_path: Path):
    hardware = {
        "device": "cpu",
        "nodes": 1,
        "per_node": 2,
        "peak_tflops": 1e-6,
        "usd_per_hour": 3.0,
    }
    loaded = load_bundle(write_bundle(tmp_path, hardware=hardware))
    flops = loaded.bundle.expense.flops
    hours = flops / (2 * 1e6 * 0.3) / 3600
    shown = shown_bundle(loaded)
    assert f"{hours:.3g} to {1.75 * hours:.3g} hours" in shown
    assert f"{2 * hours:,.0f} to {2 * 1.75 * hours:,.0f} device hours" in shown
    assert f"{6 * hours:,.0f} to {6 * 1.75 * hours:,.0f} USD" in shown
    assert "at an MFU of 30%; published runs took up to 1.75 times as long" in shown


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
    rewrite(bundle, {"format": 1})
    assert "install the version of sweepcp that wrote it" in broken(bundle)
    rewrite(bundle, {"format": 2, "more": 1})
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
    writer.start(experiment(choose=ChoiceSection(max_regression=1.0)), RunIdentity())
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


def test_a_candidate_is_the_trial_that_was_asked_for(tmp_path: Path):
    run = read_run(write_run(tmp_path, 3))
    named = candidate_from_run(run, "0001")
    trial = run.trials[1]
    assert named.method == trial.recipe
    assert (named.lr_fraction, named.seed) == (trial.recipe.lr_fraction, trial.recipe.seed)
    assert (named.mixture, named.suites) == (trial.recipe.mixture, run.experiment.suites)
    assert (named.lineage.trial, named.lineage.trial_recipe) == ("0001", trial.recipe.id)
    assert named.lineage.chosen_by == "--trial"
    assert named.read_steps() == run.read_steps("0001")
    assert named.assumptions == caveats_of(run, trial)
    assert any("few trials: 3 done" in line for line in named.assumptions)
    proxy = named.proxy
    assert proxy is not None
    assert (proxy.parameters, proxy.tokens) == (111_040, trial.recipe.tokens)
    assert (proxy.batch_tokens, proxy.seq_len) == (trial.recipe.batch_tokens, trial.recipe.seq_len)
    assert proxy.epochs == trial.epochs_by_source != trial.tokens_by_source
    chosen = candidate_from_run(run, None)
    assert chosen.lineage.trial == run.front.choice.id
    assert chosen.lineage.chosen_by == "most domain gain, general regression ≤ 2 %"


def test_corpora_of_a_run_keep_the_limits_of_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = read_run(write_run(tmp_path, 1))
    limits = {"python-docs": (7.0, "refuse"), "python-code": (2.5, "warn")}
    sources = tuple(
        source.model_copy(
            update={
                "max_epochs": limits[source.name][0],
                "beyond_max_epochs": limits[source.name][1],
            }
        )
        for source in run.experiment.sources
    )
    run = replace(run, experiment=run.experiment.model_copy(update={"sources": sources}))
    stores = {name: TokenStore(tmp_path / name, name) for name in limits}
    monkeypatch.setattr(candidate, "stores_of_run", lambda _: stores)
    for name, corpus in candidate.corpora_of_run(run).items():
        assert corpus.store == str(tmp_path / name)
        assert (corpus.max_epochs, corpus.beyond_max_epochs) == limits[name]


def test_promoted_numbers_are_those_of_the_half_that_was_not_chosen_on(tmp_path: Path):
    run = read_run(write_run(tmp_path, 3))
    card = run.trials[1].scorecard
    assert card is not None
    proxy = candidate_from_run(run, "0001").proxy
    assert proxy is not None
    scores = card.report
    assert (proxy.domain, proxy.domain_se) == (scores.domain, scores.domain_se)
    assert (proxy.general, proxy.general_se) == (scores.general, scores.general_se)
    changes = {member.name: member.change for member in scores.members}
    assert set(proxy.held_out) == {"held_out_code", "held_out_docs", "held_out_docs_de"}
    assert proxy.held_out == {name: changes[name] for name in proxy.held_out}
    # The two halves differ in every number, so that none of them can be taken for the other.
    others = {member.name: member.change for member in card.select.members}
    assert all(changes[name] != others[name] for name in proxy.held_out)
    assert scores.domain != card.select.domain
    assert scores.general_se != card.select.general_se
